//! What callers say of an event type, and its rules.

use postrider_model::{EventType, EventTypeId};
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::body::{nullable, present};
use crate::error::Error;
use crate::validate::Problems;

/// Largest schemas of an event type, in bytes.
const SCHEMAS_BYTES_MAX: usize = 256 * 1024;

/// An event type to make.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventTypeIn {
    /// Its unique name.
    #[schema(max_length = 256, pattern = r"^[a-zA-Z0-9\-_.]+$")]
    name: String,
    /// For people.
    description: String,
    #[serde(default)]
    archived: bool,
    #[serde(default)]
    deprecated: bool,
    feature_flag: Option<String>,
    /// At most one.
    feature_flags: Option<Vec<String>>,
    /// JSON schemas by version.
    #[schema(value_type = Option<Object>)]
    schemas: Option<Box<RawValue>>,
}

/// An event type to replace.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventTypeUpdate {
    /// For people.
    description: String,
    #[serde(default)]
    archived: bool,
    #[serde(default)]
    deprecated: bool,
    feature_flag: Option<String>,
    /// At most one.
    feature_flags: Option<Vec<String>>,
    /// JSON schemas by version.
    #[schema(value_type = Option<Object>)]
    schemas: Option<Box<RawValue>>,
}

/// What to change of an event type.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventTypePatch {
    #[serde(default, deserialize_with = "present")]
    description: Option<String>,
    #[serde(default, deserialize_with = "present")]
    archived: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    deprecated: Option<bool>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    feature_flag: Option<Option<String>>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Vec<String>>)]
    feature_flags: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Object>)]
    schemas: Option<Option<Box<RawValue>>>,
}

fn check(event_type: &EventType) -> Result<(), Error> {
    let mut problems = Problems::default();
    problems.name(&["body", "name"], &event_type.name);
    problems.text(&["body", "description"], &event_type.description, 0);
    if let Some(flag) = &event_type.feature_flag {
        problems.name(&["body", "featureFlag"], flag);
    }
    if let Some(schemas) = &event_type.schemas {
        problems.check(
            schemas.starts_with('{'),
            &["body", "schemas"],
            "Must be an object.",
        );
        let fits = schemas.len() <= SCHEMAS_BYTES_MAX;
        problems.check(fits, &["body", "schemas"], "Must be at most 256 KiB.");
    }
    problems.done()
}

/// One flag, from either of the two fields that name it.
fn one_flag(flag: Option<String>, flags: Option<Vec<String>>) -> Result<Option<String>, Error> {
    let mut flags = flags.unwrap_or_default();
    if flags.len() > 1 {
        return Err(Error::invalid(
            &["body", "featureFlags"],
            "At most one feature flag.",
        ));
    }
    Ok(flag.or_else(|| flags.pop()))
}

impl EventTypeIn {
    /// The event type of this id.
    pub(super) fn into_event_type(self, id: EventTypeId) -> Result<EventType, Error> {
        let update = EventTypeUpdate {
            description: self.description,
            archived: self.archived,
            deprecated: self.deprecated,
            feature_flag: self.feature_flag,
            feature_flags: self.feature_flags,
            schemas: self.schemas,
        };
        update.into_event_type(id, self.name)
    }
}

impl EventTypeUpdate {
    /// The event type of this id and name.
    pub(super) fn into_event_type(self, id: EventTypeId, name: String) -> Result<EventType, Error> {
        let event_type = EventType {
            id,
            name,
            description: self.description,
            archived: self.archived,
            deprecated: self.deprecated,
            feature_flag: one_flag(self.feature_flag, self.feature_flags)?,
            schemas: schemas_text(self.schemas.as_deref()),
            created_at: id.created_at(),
            updated_at: id.created_at(),
        };
        check(&event_type)?;
        Ok(event_type)
    }
}

impl EventTypePatch {
    /// Changes an event type.
    pub(super) fn apply(&self, event_type: &mut EventType) -> Result<(), Error> {
        if let Some(description) = &self.description {
            event_type.description.clone_from(description);
        }
        event_type.archived = self.archived.unwrap_or(event_type.archived);
        event_type.deprecated = self.deprecated.unwrap_or(event_type.deprecated);
        if self.feature_flag.is_some() || self.feature_flags.is_some() {
            let (flag, flags) = (self.feature_flag.clone(), self.feature_flags.clone());
            event_type.feature_flag = one_flag(flag.flatten(), flags.flatten())?;
        }
        if let Some(schemas) = &self.schemas {
            event_type.schemas = schemas_text(schemas.as_deref());
        }
        check(event_type)
    }
}

/// The text of schemas; `null` means that there are none.
fn schemas_text(schemas: Option<&RawValue>) -> Option<String> {
    let text = schemas?.get();
    (text != "null").then(|| text.to_owned())
}

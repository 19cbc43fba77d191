//! Event types: the catalogue of what applications publish.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use postrider_model::{EventType, EventTypeId, UnixMillis};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::Path;
use crate::body::{JsonBody, nullable, present};
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::idempotency::{NO_APP, Once, digest};
use crate::page::{FromParams, ListResponse, PageQuery, Params, Query, show_time};
use crate::state::{Api, change_time};
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

/// An event type.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventTypeOut {
    name: String,
    description: String,
    archived: bool,
    deprecated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_flag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_flags: Option<Vec<String>>,
    #[schema(value_type = Option<Object>)]
    schemas: Option<Box<RawValue>>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
}

/// Which event types.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventTypeQuery {
    /// Archived ones too.
    #[param(default = false)]
    include_archived: Option<bool>,
    /// With their schemas.
    #[param(default = false)]
    with_content: Option<bool>,
}

/// How to delete.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeleteQuery {
    /// Remove it rather than archive it.
    #[param(default = false)]
    expunge: Option<bool>,
}

impl FromParams for EventTypeQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        Ok(Self {
            include_archived: params.flag("include_archived")?,
            with_content: params.flag("with_content")?,
        })
    }
}

impl FromParams for DeleteQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        let expunge = params.flag("expunge")?;
        Ok(Self { expunge })
    }
}

impl EventTypeOut {
    fn new(event_type: EventType, with_content: bool) -> Self {
        let schemas = event_type.schemas.filter(|_| with_content);
        Self {
            name: event_type.name,
            description: event_type.description,
            archived: event_type.archived,
            deprecated: event_type.deprecated,
            feature_flags: event_type.feature_flag.clone().map(|flag| vec![flag]),
            feature_flag: event_type.feature_flag,
            schemas: schemas.and_then(|text| RawValue::from_string(text).ok()),
            created_at: show_time(event_type.created_at),
            updated_at: show_time(event_type.updated_at),
        }
    }
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

impl EventTypeUpdate {
    fn into_event_type(self, id: EventTypeId, name: String) -> Result<EventType, Error> {
        let event_type = EventType {
            id,
            name,
            description: self.description,
            archived: self.archived,
            deprecated: self.deprecated,
            feature_flag: one_flag(self.feature_flag, self.feature_flags)?,
            schemas: self
                .schemas
                .map(|schemas| schemas.get().to_owned())
                .filter(|text| text != "null"),
            created_at: id.created_at(),
            updated_at: id.created_at(),
        };
        check(&event_type)?;
        Ok(event_type)
    }
}

/// List event types.
#[utoipa::path(
    get, path = "/api/v1/event-type", tag = "Event type", operation_id = "v1.event-type.list",
    params(PageQuery, EventTypeQuery),
    responses((status = 200, body = ListResponse<EventTypeOut>), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    Query(page): Query<PageQuery>,
    Query(query): Query<EventTypeQuery>,
) -> Result<Json<ListResponse<EventTypeOut>>, Error> {
    let archived = query.include_archived.unwrap_or(false);
    let content = query.with_content.unwrap_or(false);
    let found = api.store.event_types(&page.page(false)?, archived).await?;
    let show = |event_type| EventTypeOut::new(event_type, content);
    Ok(Json(page.respond(
        found,
        |event_type| event_type.name.clone(),
        show,
    )))
}

/// Create an event type.
#[utoipa::path(
    post, path = "/api/v1/event-type", tag = "Event type", operation_id = "v1.event-type.create",
    params(("idempotency-key" = Option<String>, Header)), request_body = EventTypeIn,
    responses((status = 201, body = EventTypeOut), (status = 409, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn create(
    State(api): State<Api>,
    headers: HeaderMap,
    body: JsonBody<EventTypeIn>,
) -> Result<Response, Error> {
    let input = body.value;
    let fresh = EventTypeId::generate(UnixMillis::now(), &mut rand::rng());
    let fingerprint = digest(&[b"event-type", &body.bytes]);
    let once = Once::begin(&api, NO_APP, &headers, fingerprint, *fresh.as_bytes()).await?;
    let result = async {
        let id = EventTypeId::from_slice(&once.resource).ok_or_else(Error::internal)?;
        let update = EventTypeUpdate {
            description: input.description,
            archived: input.archived,
            deprecated: input.deprecated,
            feature_flag: input.feature_flag,
            feature_flags: input.feature_flags,
            schemas: input.schemas,
        };
        let event_type = update.into_event_type(id, input.name)?;
        if once.earlier
            && let Some(found) = api.store.event_type(&event_type.name).await?
            && found.id == id
        {
            return Ok(found);
        }
        match api.store.create_event_type(&event_type).await {
            Err(postrider_store::StoreError::Conflict(_)) => Err(Error::conflict(
                "event_type_exists",
                "An event type of this name exists; update it instead.",
            )),
            other => Ok(other.map(|()| event_type)?),
        }
    }
    .await;
    let event_type = once.end(&api, result)?;
    Ok((StatusCode::CREATED, Json(EventTypeOut::new(event_type, true))).into_response())
}

async fn find(api: &Api, name: &str) -> Result<EventType, Error> {
    api.store.event_type(name).await?.ok_or_else(Error::not_found)
}

/// Get an event type.
#[utoipa::path(
    get, path = "/api/v1/event-type/{event_type_name}", tag = "Event type", operation_id = "v1.event-type.get",
    params(("event_type_name" = String, Path)),
    responses((status = 200, body = EventTypeOut), (status = 404, body = ErrorOut))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<EventTypeOut>, Error> {
    Ok(Json(EventTypeOut::new(find(&api, &name).await?, true)))
}

/// Replace an event type, or create it when there is none of this name.
#[utoipa::path(
    put, path = "/api/v1/event-type/{event_type_name}", tag = "Event type", operation_id = "v1.event-type.update",
    params(("event_type_name" = String, Path)), request_body = EventTypeUpdate,
    responses((status = 200, body = EventTypeOut), (status = 201, body = EventTypeOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn update(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: JsonBody<EventTypeUpdate>,
) -> Result<Response, Error> {
    let id = EventTypeId::generate(UnixMillis::now(), &mut rand::rng());
    let event_type = body.value.into_event_type(id, name)?;
    let created = api.store.put_event_type(&event_type).await?;
    let status = if created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let stored = find(&api, &event_type.name).await?;
    Ok((status, Json(EventTypeOut::new(stored, true))).into_response())
}

/// Change fields of an event type.
#[utoipa::path(
    patch, path = "/api/v1/event-type/{event_type_name}", tag = "Event type", operation_id = "patch_event_type",
    params(("event_type_name" = String, Path)), request_body = EventTypePatch,
    responses((status = 200, body = EventTypeOut), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn patch(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: JsonBody<EventTypePatch>,
) -> Result<Json<EventTypeOut>, Error> {
    let _lock = api.config_lock(NO_APP).await;
    let mut event_type = find(&api, &name).await?;
    let patch = body.value;
    event_type.description = patch.description.unwrap_or(event_type.description);
    event_type.archived = patch.archived.unwrap_or(event_type.archived);
    event_type.deprecated = patch.deprecated.unwrap_or(event_type.deprecated);
    if patch.feature_flag.is_some() || patch.feature_flags.is_some() {
        event_type.feature_flag = one_flag(patch.feature_flag.flatten(), patch.feature_flags.flatten())?;
    }
    if let Some(schemas) = patch.schemas {
        event_type.schemas = schemas
            .map(|schemas| schemas.get().to_owned())
            .filter(|text| text != "null");
    }
    event_type.updated_at = change_time(event_type.updated_at);
    check(&event_type)?;
    api.store.put_event_type(&event_type).await?;
    Ok(Json(EventTypeOut::new(event_type, true)))
}

/// Archive an event type, or remove it.
#[utoipa::path(
    delete, path = "/api/v1/event-type/{event_type_name}", tag = "Event type", operation_id = "v1.event-type.delete",
    params(("event_type_name" = String, Path), DeleteQuery),
    responses((status = 204), (status = 404, body = ErrorOut))
)]
pub(crate) async fn delete(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<StatusCode, Error> {
    let expunge = query.expunge.unwrap_or(false);
    let deleted = api
        .store
        .delete_event_type(&name, expunge, UnixMillis::now())
        .await?;
    if deleted {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Error::not_found())
    }
}

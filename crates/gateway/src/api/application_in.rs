//! What callers say of an application, and its rules.

use std::collections::BTreeMap;

use postrider_model::{AppId, Application};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::body::{nullable, present};
use crate::error::Error;
use crate::validate::Problems;

/// An application to make or to replace.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ApplicationIn {
    /// What people call it.
    #[schema(min_length = 1)]
    pub(crate) name: String,
    /// Your own name for it, unique. Where the path names an application by it, it stays as it is when absent.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 256, pattern = r"^[a-zA-Z0-9\-_.]+$")]
    pub(crate) uid: Option<Option<String>>,
    /// Messages a second that it may send.
    #[schema(minimum = 1, maximum = 65535)]
    pub(crate) throttle_rate: Option<u32>,
    /// Send its receivers a `traceparent` header (W3C Trace Context), so that their spans join the delivery's trace.
    /// Left as it is when absent; false at first.
    pub(crate) propagate_traceparent: Option<bool>,
    /// Notes of yours.
    #[serde(default)]
    pub(crate) metadata: BTreeMap<String, String>,
}

/// What to change of an application.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ApplicationPatch {
    #[serde(default, deserialize_with = "present")]
    name: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    uid: Option<Option<String>>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>)]
    throttle_rate: Option<Option<u32>>,
    #[serde(default, deserialize_with = "present")]
    propagate_traceparent: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    metadata: Option<BTreeMap<String, String>>,
}

impl ApplicationIn {
    pub(super) fn uid(&self) -> Option<&str> {
        self.uid.as_ref().and_then(Option::as_deref)
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let mut problems = Problems::default();
        problems.text(&["body", "name"], &self.name, 1);
        problems.uid(&["body", "uid"], self.uid(), AppId::PREFIX);
        problems.rate(&["body", "throttleRate"], self.throttle_rate);
        problems.metadata(&["body", "metadata"], &self.metadata);
        problems.done()
    }

    /// An application of this id with these fields.
    pub(super) fn into_application(self, id: AppId) -> Application {
        let mut app = Application {
            id,
            uid: None,
            name: String::new(),
            throttle_rate: None,
            propagate_traceparent: false,
            metadata: BTreeMap::new(),
            created_at: id.created_at(),
            updated_at: id.created_at(),
        };
        self.replace(&mut app);
        app
    }

    /// Gives an application these fields.
    pub(super) fn replace(self, app: &mut Application) {
        app.uid = self.uid.flatten();
        app.name = self.name;
        app.throttle_rate = self.throttle_rate;
        app.propagate_traceparent = self.propagate_traceparent.unwrap_or(app.propagate_traceparent);
        app.metadata = self.metadata;
    }
}

impl ApplicationPatch {
    /// The fields of an application after this change.
    pub(super) fn over(self, app: &Application) -> ApplicationIn {
        ApplicationIn {
            name: self.name.unwrap_or_else(|| app.name.clone()),
            uid: Some(self.uid.unwrap_or_else(|| app.uid.clone())),
            throttle_rate: self.throttle_rate.unwrap_or(app.throttle_rate),
            propagate_traceparent: self.propagate_traceparent,
            metadata: self.metadata.unwrap_or_else(|| app.metadata.clone()),
        }
    }
}

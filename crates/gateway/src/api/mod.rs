//! The HTTP API: one file a group of operations, wire-compatible with the open webhook API, and our own extensions
//! in the same conventions.

mod api_key;
pub(crate) mod application;
mod application_in;
mod attempt;
mod attempt_out;
mod background_task;
mod change;
mod delivery;
mod delivery_query;
pub(crate) mod endpoint;
mod endpoint_in;
mod endpoint_ops;
mod endpoint_out;
mod endpoint_room;
mod endpoint_secret;
pub(crate) mod event_type;
mod event_type_in;
pub(crate) mod message;
mod message_batch;
mod message_in;
mod message_out;
mod message_query;
mod message_raw;
mod parked;
mod portal;
mod resend;
pub(crate) mod status;

use axum::extract::FromRequestParts;
use axum::extract::rejection::PathRejection;
use http::request::Parts;
use serde::de::DeserializeOwned;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::OwnApp;
use crate::error::Error;
use crate::state::Api;

/// Every operation.
pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(application::list, application::create))
        .routes(routes!(
            application::get,
            application::update,
            application::patch,
            application::delete
        ))
        .routes(routes!(endpoint::list, endpoint::create))
        .routes(routes!(
            endpoint::get,
            endpoint::update,
            endpoint::patch,
            endpoint::delete
        ))
        .routes(routes!(
            endpoint_secret::get_headers,
            endpoint_secret::update_headers,
            endpoint_secret::patch_headers
        ))
        .routes(routes!(endpoint_secret::get_secret))
        .routes(routes!(endpoint_secret::rotate))
        .routes(routes!(endpoint_ops::stats))
        .routes(routes!(endpoint_ops::recover))
        .routes(routes!(endpoint_ops::replay_missing))
        .routes(routes!(endpoint_ops::send_example))
        .routes(routes!(event_type::list, event_type::create))
        .routes(routes!(
            event_type::get,
            event_type::update,
            event_type::patch,
            event_type::delete
        ))
        .routes(routes!(message::list, message::create))
        .routes(routes!(message_batch::create_batch))
        .routes(routes!(message_raw::create_raw))
        .routes(routes!(message::get))
        .routes(routes!(message::expunge_content))
        .routes(routes!(attempt::list_by_endpoint))
        .routes(routes!(attempt::list_by_msg))
        .routes(routes!(delivery::list_attempted_messages))
        .routes(routes!(delivery::list_attempted_destinations))
        .routes(routes!(attempt::get))
        .routes(routes!(attempt::expunge_content))
        .routes(routes!(resend::resend))
        .routes(routes!(background_task::get))
        .routes(routes!(api_key::list, api_key::create))
        .routes(routes!(api_key::revoke))
        .routes(routes!(parked::list))
        .routes(routes!(parked::delete))
        .routes(routes!(portal::app_portal_access))
        .routes(routes!(portal::logout))
        .routes(routes!(status::get))
        .routes(routes!(crate::health::health))
        .routes(routes!(crate::health::ping))
}

/// Path parameters; what cannot be decoded is a 422. For a key of an application the first one is that application's id,
/// whatever the path called it.
pub(crate) struct Path<T>(pub(crate) T);

/// What [`Path`] reads.
pub(crate) trait PathParams: DeserializeOwned + Send {
    /// The application, in paths that have one.
    fn first(&mut self) -> &mut String;
}

impl PathParams for String {
    fn first(&mut self) -> &mut String {
        self
    }
}

impl PathParams for (String, String) {
    fn first(&mut self) -> &mut String {
        &mut self.0
    }
}

impl PathParams for (String, String, String) {
    fn first(&mut self) -> &mut String {
        &mut self.0
    }
}

impl<T: PathParams> FromRequestParts<Api> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Error> {
        match axum::extract::Path::<T>::from_request_parts(parts, api).await {
            Ok(axum::extract::Path(mut value)) => {
                if let Some(OwnApp(own)) = parts.extensions.get() {
                    *value.first() = own.to_string();
                }
                Ok(Self(value))
            }
            Err(PathRejection::FailedToDeserializePathParams(problem)) => {
                Err(Error::invalid(&["path"], format!("{}.", problem.body_text())))
            }
            Err(_) => Err(Error::internal()),
        }
    }
}

//! A message whose body is the request's body, whatever it is.

use axum::extract::{Request, State};
use axum::response::Response;
use http::header;
use http::request::Parts;
use postrider_model::{Message, MessageId};
use utoipa::IntoParams;

use super::Path;
use super::message::{respond_one, traceparent};
use super::message_in::{CHANNELS_MAX, check_content_type};
use super::message_out::MessageOut;
use crate::accept::may_begin;
use crate::accept::{self, Draft, Target, accept};
use crate::body;
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::idempotency::{IdempotencyKey, digest};
use crate::page::{FromParams, Params, Query};
use crate::state::{Api, app_ref};
use crate::validate::Problems;

/// What JSON messages say in their body.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(crate) struct RawQuery {
    /// What kind of event it is.
    event_type: String,
    /// Your own id for it, unique for 24 hours.
    event_id: Option<String>,
    /// Channels that it goes to: `a,b` or repeated.
    #[param(value_type = Option<Vec<String>>)]
    channels: Vec<String>,
}

impl FromParams for RawQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        let query = Self {
            event_type: params.text("eventType").unwrap_or_default().to_owned(),
            event_id: params.text("eventId").map(str::to_owned),
            channels: params.list("channels"),
        };
        let mut problems = Problems::default();
        problems.name(&["query", "eventType"], &query.event_type);
        problems.uid(
            &["query", "eventId"],
            query.event_id.as_deref(),
            MessageId::PREFIX,
        );
        problems.channels(&["query", "channels"], Some(&query.channels), CHANNELS_MAX);
        problems.done()?;
        Ok(query)
    }
}

/// Send a message whose body is this request's body, with its Content-Type.
#[utoipa::path(
    post, path = "/api/v1/app/{app_id}/msg/raw", tag = "Message", operation_id = "v1.message.create-raw",
    params(("app_id" = String, Path), RawQuery, ("idempotency-key" = Option<String>, Header)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 202, body = MessageOut), (status = 404, body = ErrorOut), (status = 409, body = ErrorOut), (status = 413, body = ErrorOut), (status = 422, body = ValidationOut), (status = 429, body = ErrorOut), (status = 503, body = ErrorOut))
)]
pub(crate) async fn create_raw(
    State(api): State<Api>,
    Path(app): Path<String>,
    Query(query): Query<RawQuery>,
    request: Request,
) -> Result<Response, Error> {
    may_begin(&api)?;
    let (Parts { headers, .. }, body) = request.into_parts();
    let app = app_ref(&app).ok_or_else(Error::not_found)?;
    let content_type = match headers.get(header::CONTENT_TYPE) {
        None => "application/octet-stream",
        // What is not ASCII fails the check below.
        Some(value) => value.to_str().unwrap_or_default(),
    };
    let mut problems = Problems::default();
    check_content_type(content_type, &["header", "content-type"], &mut problems);
    problems.done()?;
    let body = body::read(&api, &headers, body, api.settings.body_bytes_max).await?;
    let mut parts: Vec<&[u8]> = vec![
        b"raw",
        query.event_type.as_bytes(),
        query.event_id.as_deref().unwrap_or_default().as_bytes(),
        content_type.as_bytes(),
        &body.bytes,
    ];
    parts.extend(query.channels.iter().map(String::as_bytes));
    let fingerprint = digest(&parts);
    let draft = Draft {
        index: 0,
        event_type: query.event_type,
        event_id: query.event_id,
        channels: query.channels,
        content_type: content_type.to_owned(),
        payload: body.bytes.clone(),
        retention_days: None,
    };
    let request = accept::Request {
        app,
        drafts: vec![draft],
        key: IdempotencyKey::from_headers(&headers)?,
        fingerprint,
        traceparent: traceparent(&headers),
        target: Target::Subscribers,
    };
    let show = |message: &Message| MessageOut::new(message, false);
    respond_one(accept(&api, request).await?, show)
}

//! Messages: accept one, read them, remove a payload.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::extract::{Request, State};
use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use postrider_model::{AppId, Message, MessageId, UnixMillis};
use postrider_secrets::Scope;
use postrider_store::{AppRef, MessageFilter, MessageRow};
use postrider_telemetry::trace::TraceContext;
use tokio::time::Instant;

use super::Path;
use super::application::create_app;
use super::application_in::ApplicationIn;
use super::message_in::MessageIn;
use super::message_out::MessageOut;
use super::message_query::{ContentQuery, MessageQuery};
use crate::accept::may_begin;
use crate::accept::{self, Target, Verdict, accept};
use crate::body;
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::idempotency::{IdempotencyKey, digest};
use crate::page::{ListResponse, PageQuery, Query};
use crate::state::{Api, app_ref};
use crate::validate::{NAME_CHARS_MAX, is_name};

/// Younger than this, a message may be accepted and not yet on record.
const YOUNG: Duration = Duration::from_secs(60);
const RECORD_POLL: Duration = Duration::from_millis(50);
/// Bytes of room made for an answer beside its payload; a longer one makes its own.
const ANSWER: usize = 512;

/// Send a message.
///
/// 202 means that the message and each of its deliveries are safe. Any other answer means that it was not accepted,
/// or may be repeated with the same `Idempotency-Key` without a second message.
#[utoipa::path(
    post, path = "/api/v1/app/{app_id}/msg", tag = "Message", operation_id = "v1.message.create",
    params(("app_id" = String, Path), ContentQuery, ("idempotency-key" = Option<String>, Header)),
    request_body = MessageIn<'static>,
    responses((status = 202, body = MessageOut), (status = 404, body = ErrorOut), (status = 409, description = "The event id is taken", body = ErrorOut), (status = 413, body = ErrorOut), (status = 422, body = ValidationOut), (status = 429, body = ErrorOut), (status = 503, body = ErrorOut))
)]
pub(crate) async fn create(
    State(api): State<Api>,
    Path(app): Path<String>,
    Query(query): Query<ContentQuery>,
    Extension(scope): Extension<Scope>,
    request: Request,
) -> Result<Response, Error> {
    may_begin(&api)?;
    let (Parts { headers, .. }, body) = request.into_parts();
    let body = body::read(&api, &headers, body, api.settings.body_bytes_max).await?;
    let mut input: MessageIn<'_> = body::parse(&body.bytes)?;
    let (inline, payload) = (input.application.take(), input.payload);
    let draft = input.into_draft(0, &body.bytes, api.settings.body_bytes_max)?;
    let app = accepting_app(&api, &app, inline, &scope).await?;
    let request = accept::Request {
        app,
        drafts: vec![draft],
        key: IdempotencyKey::from_headers(&headers)?,
        fingerprint: digest(&[b"msg", &body.bytes]),
        traceparent: traceparent(&headers),
        target: Target::Subscribers,
    };
    let show = |message: &Message| MessageOut::accepted(message, query.wanted(), payload);
    respond_one(accept(&api, request).await?, show)
}

/// The answer for a single message.
pub(crate) fn respond_one(
    verdicts: Vec<Verdict>,
    show: impl FnOnce(&Message) -> MessageOut,
) -> Result<Response, Error> {
    match verdicts.into_iter().next() {
        Some(Verdict::Accepted(message)) => {
            let shown = show(&message);
            // Into a vector: a byte buffer costs more for each of the many small pieces.
            let mut json = Vec::with_capacity(ANSWER + shown.payload_bytes());
            serde_json::to_writer(&mut json, &shown).map_err(|_| Error::internal())?;
            let mut response = Response::new(json.into());
            *response.status_mut() = StatusCode::ACCEPTED;
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            Ok(response)
        }
        Some(Verdict::EventIdTaken) => Err(event_id_taken()),
        None => Err(Error::internal()),
    }
}

pub(crate) fn event_id_taken() -> Error {
    Error::conflict(
        "conflict",
        "Another message of the last 24 hours has this eventId.",
    )
}

/// The application of the path; made now if the request brings it along and its key may.
async fn accepting_app(
    api: &Api,
    app: &str,
    inline: Option<ApplicationIn>,
    scope: &Scope,
) -> Result<AppRef, Error> {
    let reference = app_ref(app).ok_or_else(Error::not_found)?;
    let (AppRef::Uid(uid), Some(mut inline)) = (&reference, inline) else {
        return Ok(reference);
    };
    if api.cache.get(&reference).await?.is_some() {
        return Ok(reference);
    }
    if *scope != Scope::Admin {
        return Err(Error::forbidden());
    }
    if inline.uid().is_some_and(|named| named != uid) {
        return Err(Error::invalid(
            &["body", "application", "uid"],
            "Must be the uid in the path.",
        ));
    }
    inline.uid = Some(Some(uid.clone()));
    let id = AppId::generate(UnixMillis::now(), &mut rand::rng());
    // Boxed, since this is rare and the future of a request should stay small.
    match Box::pin(create_app(api, id, inline)).await {
        // Another message brought it along.
        Err(error) if error.status() == StatusCode::CONFLICT => Ok(reference),
        created => created.map(|_| reference),
    }
}

/// The header of W3C Trace Context.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// The caller's trace, if it is one.
pub(crate) fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(TRACEPARENT)?.to_str().ok()?;
    // As we write it: a later version's additions mean nothing to us.
    TraceContext::parse(text).map(|context| context.to_string())
}

/// List an application's messages, newest first.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/msg", tag = "Message", operation_id = "v1.message.list",
    params(("app_id" = String, Path), PageQuery, MessageQuery, ContentQuery),
    responses((status = 200, body = ListResponse<MessageOut>), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    Path(app): Path<String>,
    Query(page): Query<PageQuery>,
    Query(query): Query<MessageQuery>,
    Query(content): Query<ContentQuery>,
) -> Result<Json<ListResponse<MessageOut>>, Error> {
    let store_page = page.page(true)?;
    let app = api.app(&app).await?;
    let filter = MessageFilter {
        range: query.range(),
        event_types: query.event_types,
        channel: query.channel,
        with_payload: content.wanted(),
    };
    let part = api.store.messages(app.id, &filter, &store_page).await?;
    let show = |row: MessageRow| MessageOut::new(&row.message, content.wanted());
    Ok(Json(page.respond_part(part, |row| row.message.id, show)))
}

/// Get a message by id or event id.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/msg/{msg_id}", tag = "Message", operation_id = "v1.message.get",
    params(("app_id" = String, Path), ("msg_id" = String, Path, description = "Id or event id of the message"), ContentQuery),
    responses((status = 200, body = MessageOut), (status = 404, body = ErrorOut), (status = 503, description = "Accepted, not yet on record", body = ErrorOut))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path((app, message)): Path<(String, String)>,
    Query(content): Query<ContentQuery>,
) -> Result<Json<MessageOut>, Error> {
    let app = api.app(&app).await?;
    let row = find(&api, app.id, &message, content.wanted()).await?;
    Ok(Json(MessageOut::new(&row.message, content.wanted())))
}

/// A recorded message by id or event id. A young one may still be on its way to the record: it is waited for, and
/// never denied.
pub(crate) async fn find(api: &Api, app: AppId, name: &str, with_payload: bool) -> Result<MessageRow, Error> {
    let id = if name.starts_with(MessageId::PREFIX) {
        Some(name.parse::<MessageId>().map_err(|_| Error::not_found())?)
    } else if is_name(name, NAME_CHARS_MAX) {
        None
    } else {
        return Err(Error::not_found());
    };
    let is_young = || id.is_none_or(|id| UnixMillis::now().since(id.created_at()) < YOUNG);
    let deadline = Instant::now() + api.settings.record_wait;
    loop {
        let found = match id {
            Some(id) => api.store.message(app, id, with_payload).await?,
            None => api.store.message_by_event_id(app, name, with_payload).await?,
        };
        if let Some(row) = found {
            return Ok(row);
        }
        // In the embedded set-up accepting is recording: there is nothing to wait for.
        if !is_young() || !api.broker.is_durable() {
            return Err(Error::not_found());
        }
        if Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(RECORD_POLL).await;
    }
    match id {
        Some(_) => Err(Error::unavailable(
            "not_recorded_yet",
            "The message is so young that it may not be on record yet; try again.",
            Duration::from_secs(1),
        )),
        None => Err(Error::not_found()),
    }
}

/// The message of a row, for a resend.
pub(crate) fn with_payload(row: MessageRow) -> Result<Arc<Message>, Error> {
    if row.payload_gone {
        return Err(Error::bad_request(
            "missing_payload",
            "The message's payload is no longer stored, so it cannot be sent again.",
        ));
    }
    Ok(Arc::new(row.message))
}

/// Remove a message's payload; what waits for it is cancelled.
#[utoipa::path(
    delete, path = "/api/v1/app/{app_id}/msg/{msg_id}/content", tag = "Message", operation_id = "v1.message.expunge-content",
    params(("app_id" = String, Path), ("msg_id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorOut))
)]
pub(crate) async fn expunge_content(
    State(api): State<Api>,
    Path((app, message)): Path<(String, String)>,
) -> Result<StatusCode, Error> {
    let app = api.app(&app).await?;
    let row = find(&api, app.id, &message, false).await?;
    api.store.expunge_payload(app.id, row.message.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

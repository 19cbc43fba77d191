//! What can be done with an endpoint's deliveries: count them, send an example, deliver again what was missed.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use postrider_model::{TaskId, UnixMillis};
use postrider_store::{AppRef, TaskKind, TaskRow, TaskState, TimeRange};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::Path;
use super::background_task::TaskOut;
use super::message_out::MessageOut;
use crate::accept::{Draft, Request, Target, Verdict, accept};
use crate::body::JsonBody;
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::idempotency::{IdempotencyKey, digest};
use crate::once::{Makes, Once};
use crate::page::{FromParams, Params, Query, TIME_RULE, parse_time};
use crate::state::{Api, check_enabled};
use crate::validate::Problems;

/// What is sent when an event type has no example of its own.
const EXAMPLE: &str = r#"{"example":true,"text":"This is an example message."}"#;

/// Most recoveries and replays of one application under way: they take turns with those of all others.
const TASKS_MAX: u32 = 100;

/// An endpoint's deliveries by state.
#[derive(Serialize, ToSchema)]
pub(crate) struct EndpointStats {
    success: i64,
    pending: i64,
    sending: i64,
    fail: i64,
    canceled: i64,
}

/// Of which messages.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct StatsQuery {
    /// Made at this time or later (to the hour).
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<UnixMillis>,
    /// Made before this time (to the hour).
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<UnixMillis>,
}

impl FromParams for StatsQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        Ok(Self {
            since: params.time("since")?,
            until: params.time("until")?,
        })
    }
}

/// Messages of a time.
#[derive(Deserialize, ToSchema)]
pub(crate) struct RecoverIn {
    /// Made at this time or later.
    #[schema(format = DateTime)]
    since: String,
    /// Made before this time; now when absent.
    #[schema(format = DateTime)]
    until: Option<String>,
}

/// Which example to send.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventExampleIn {
    /// The event type that it is an example of.
    event_type: String,
    /// Which of its schema's examples, from 0.
    #[serde(default)]
    example_index: usize,
    /// A payload to send instead.
    #[schema(value_type = Option<Object>)]
    payload: Option<Box<RawValue>>,
}

/// Count an endpoint's deliveries by state.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}/stats", tag = "Endpoint", operation_id = "v1.endpoint.get-stats",
    params(("app_id" = String, Path), ("endpoint_id" = String, Path), StatsQuery),
    responses((status = 200, body = EndpointStats), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn stats(
    State(api): State<Api>,
    Path((app, endpoint)): Path<(String, String)>,
    Query(query): Query<StatsQuery>,
) -> Result<Json<EndpointStats>, Error> {
    let (_, endpoint) = api.app_endpoint(&app, &endpoint).await?;
    let range = TimeRange {
        after: query.since,
        before: query.until,
    };
    let counts = api.store.endpoint_counts(endpoint.id, range).await?;
    Ok(Json(EndpointStats {
        success: counts.success,
        pending: counts.pending,
        sending: counts.sending,
        fail: counts.fail,
        canceled: counts.canceled,
    }))
}

/// Deliver again what failed to an endpoint in a time.
#[utoipa::path(
    post, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}/recover", tag = "Endpoint", operation_id = "v1.endpoint.recover",
    params(("app_id" = String, Path), ("endpoint_id" = String, Path), ("idempotency-key" = Option<String>, Header)),
    request_body = RecoverIn,
    responses((status = 202, body = TaskOut), (status = 400, description = "The endpoint is disabled, or a limit is reached", body = ErrorOut), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn recover(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    body: JsonBody<RecoverIn>,
) -> Result<Response, Error> {
    start_task(&api, &path, &headers, &body, TaskKind::Recover).await
}

/// Deliver to an endpoint every message of a time that it subscribes to and never got.
#[utoipa::path(
    post, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}/replay-missing", tag = "Endpoint", operation_id = "v1.endpoint.replay-missing",
    params(("app_id" = String, Path), ("endpoint_id" = String, Path), ("idempotency-key" = Option<String>, Header)),
    request_body = RecoverIn,
    responses((status = 202, body = TaskOut), (status = 400, description = "The endpoint is disabled, or a limit is reached", body = ErrorOut), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn replay_missing(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    body: JsonBody<RecoverIn>,
) -> Result<Response, Error> {
    start_task(&api, &path, &headers, &body, TaskKind::Replay).await
}

async fn start_task(
    api: &Api,
    (app, endpoint): &(String, String),
    headers: &HeaderMap,
    body: &JsonBody<RecoverIn>,
    kind: TaskKind,
) -> Result<Response, Error> {
    let now = UnixMillis::now();
    let (since, until) = task_range(&body.value, now)?;
    let (app, endpoint) = api.app_endpoint(app, endpoint).await?;
    let fresh = TaskId::generate(now, &mut rand::rng());
    let fingerprint = digest(&[&[kind as u8], endpoint.id.as_bytes(), &body.bytes]);
    let makes = Makes::New(*fresh.as_bytes());
    let once = Once::begin(api, app.id, headers, fingerprint, makes).await?;
    let result = async {
        let id = TaskId::from_slice(&once.resource).ok_or_else(Error::internal)?;
        let task = TaskRow {
            id,
            kind,
            app: app.id,
            endpoint: endpoint.id,
            since,
            until,
            cursor: None,
            state: TaskState::Running,
            updated_at: now,
        };
        let create = async {
            check_enabled(&endpoint)?;
            if api.store.running_tasks(app.id, TASKS_MAX).await? >= TASKS_MAX {
                let detail = format!(
                    "An application has at most {TASKS_MAX} recoveries and replays under way; wait until one has ended."
                );
                return Err(Error::bad_request("limit_reached", detail));
            }
            api.store.create_task(&task).await?;
            Ok(task.clone())
        };
        once.find_or_make(|| api.store.task(id), create).await
    }
    .await;
    let task = once.end(api, result).await?;
    Ok((StatusCode::ACCEPTED, Json(TaskOut::from(task))).into_response())
}

fn task_range(input: &RecoverIn, now: UnixMillis) -> Result<(UnixMillis, UnixMillis), Error> {
    let time =
        |name: &str, text: &str| parse_time(text).ok_or_else(|| Error::invalid(&["body", name], TIME_RULE));
    let since = time("since", &input.since)?;
    let until = input
        .until
        .as_deref()
        .map_or(Ok(now), |text| time("until", text))?;
    if since >= until {
        return Err(Error::unprocessable(
            "invalid_range",
            &["body", "since"],
            "Must be before `until`, and in the past.",
        ));
    }
    Ok((since, until))
}

/// Send an example message to one endpoint.
#[utoipa::path(
    post, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}/send-example", tag = "Endpoint", operation_id = "v1.endpoint.send-example",
    params(("app_id" = String, Path), ("endpoint_id" = String, Path), ("idempotency-key" = Option<String>, Header)),
    request_body = EventExampleIn,
    responses((status = 200, body = MessageOut), (status = 400, description = "The endpoint is disabled", body = ErrorOut), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut), (status = 429, body = ErrorOut))
)]
pub(crate) async fn send_example(
    State(api): State<Api>,
    Path((app, endpoint)): Path<(String, String)>,
    headers: HeaderMap,
    body: JsonBody<EventExampleIn>,
) -> Result<Json<MessageOut>, Error> {
    let mut problems = Problems::default();
    problems.name(&["body", "eventType"], &body.value.event_type);
    let payload = body.value.payload.as_deref().map(RawValue::get);
    let is_object = payload.is_none_or(|payload| payload.starts_with('{'));
    problems.check(is_object, &["body", "payload"], "Payload must be an object.");
    problems.done()?;
    let (app, endpoint) = api.enabled_endpoint(&app, &endpoint).await?;
    let payload = match payload {
        Some(payload) => payload.to_owned(),
        None => example_of(&api, &body.value).await?,
    };
    let draft = Draft {
        index: 0,
        event_type: body.value.event_type,
        event_id: None,
        channels: Vec::new(),
        content_type: "application/json".to_owned(),
        payload: Bytes::from(payload),
        retention_days: None,
    };
    let request = Request {
        app: AppRef::Id(app.id),
        drafts: vec![draft],
        key: IdempotencyKey::from_headers(&headers)?,
        fingerprint: digest(&[b"example", endpoint.id.as_bytes(), &body.bytes]),
        traceparent: None,
        target: Target::Endpoint(endpoint.id),
    };
    match accept(&api, request).await?.into_iter().next() {
        Some(Verdict::Accepted(message)) => Ok(Json(MessageOut::new(&message, true))),
        Some(Verdict::EventIdTaken) | None => Err(Error::internal()),
    }
}

/// The example of the event type's newest schema, if it has one.
async fn example_of(api: &Api, wanted: &EventExampleIn) -> Result<String, Error> {
    let schemas = api
        .store
        .event_type(&wanted.event_type)
        .await?
        .and_then(|found| found.schemas);
    let schemas: Option<serde_json::Map<String, serde_json::Value>> =
        schemas.and_then(|text| serde_json::from_str(&text).ok());
    let mut versions: Vec<_> = schemas.into_iter().flatten().collect();
    // Versions are numbers, by convention: 10 is newer than 9.
    versions.sort_by_cached_key(|(version, _)| (version.parse::<u64>().ok(), version.clone()));
    let examples = versions.iter().rev().filter_map(|(_, schema)| {
        let listed = schema.get("examples");
        let example = listed.and_then(|examples| examples.get(wanted.example_index));
        example
            .or_else(|| schema.get("example"))
            .filter(|example| example.is_object())
    });
    let found = examples.map(ToString::to_string).next();
    Ok(found.unwrap_or_else(|| EXAMPLE.to_owned()))
}

//! Attempts and deliveries: what became of messages, and sending one again.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use postrider_model::{
    AttemptClass, AttemptId, DeliveryId, DeliveryState, Endpoint, EndpointId, MessageId, Trigger,
};
use postrider_store::{
    AppRef, AttemptFilter, AttemptRow, DeliveryFilter, DeliveryRow, MessageRow, Page, TimeRange,
};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::Path;
use super::endpoint::EndpointOut;
use super::message::{ContentQuery, MessageOut, MessageQuery, find, with_payload};
use crate::accept::may_begin;
use crate::accept::{Load, publish};
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::idempotency::IdempotencyKey;
use crate::page::{FromParams, ListResponse, PageQuery, Params, Query, show_time};
use crate::state::{Api, endpoint_ref};

/// One POST and what came of it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessageAttemptOut {
    #[schema(value_type = String)]
    id: AttemptId,
    #[schema(value_type = String)]
    msg_id: MessageId,
    #[schema(value_type = String)]
    endpoint_id: EndpointId,
    url: String,
    /// The start of the response's body, or the error in words when there was no response.
    response: String,
    /// 0 when there was no response.
    response_status_code: u16,
    response_duration_ms: u64,
    /// 0 success, 2 fail.
    status: u8,
    status_text: &'static str,
    /// 0 scheduled, 1 manual.
    trigger_type: u8,
    #[schema(format = DateTime)]
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    msg: Option<MessageOut>,
}

/// A message and how its delivery to the endpoint stands.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointMessageOut {
    #[serde(flatten)]
    message: MessageOut,
    /// 0 success, 1 pending, 2 fail, 3 sending; 4 cancelled when `expanded_statuses` is set, else 2.
    status: u8,
    status_text: &'static str,
    #[schema(format = DateTime)]
    next_attempt: Option<String>,
}

/// An endpoint and how a message's delivery to it stands.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessageEndpointOut {
    #[serde(flatten)]
    endpoint: EndpointOut,
    /// 0 success, 1 pending, 2 fail, 3 sending.
    status: u8,
    status_text: &'static str,
    #[schema(format = DateTime)]
    next_attempt: Option<String>,
}

/// Nothing to say.
#[derive(Serialize, ToSchema)]
pub(crate) struct EmptyResponse {}

/// Which attempts or deliveries.
#[derive(Clone, Copy, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct StatusQuery {
    /// 0 success, 1 pending, 2 fail, 3 sending, 4 cancelled.
    #[param(minimum = 0, maximum = 4)]
    status: Option<u8>,
    /// Whose response status is in this class; 0 means no response.
    #[param(value_type = Option<u16>)]
    status_code_class: Option<u16>,
    /// Show cancelled deliveries as 4 rather than 2.
    #[param(default = false)]
    expanded_statuses: Option<bool>,
    /// Bring the message along, without its payload.
    #[param(default = false)]
    with_msg: Option<bool>,
}

impl FromParams for StatusQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        let status = params.parsed::<u8>("status")?;
        if status.is_some_and(|status| status > 4) {
            return Err(Error::invalid(&["query", "status"], "Must be 0, 1, 2, 3 or 4."));
        }
        let status_code_class = params.parsed::<u16>("status_code_class")?;
        if status_code_class.is_some_and(|class| ![0, 100, 200, 300, 400, 500].contains(&class)) {
            let loc = ["query", "status_code_class"];
            return Err(Error::invalid(&loc, "Must be 0, 100, 200, 300, 400 or 500."));
        }
        Ok(Self {
            status,
            status_code_class,
            expanded_statuses: params.flag("expanded_statuses")?,
            with_msg: params.flag("with_msg")?,
        })
    }
}

impl StatusQuery {
    /// The states that a status stands for, as it is shown.
    fn states(self) -> Vec<DeliveryState> {
        let expanded = self.expanded_statuses.unwrap_or(false);
        match self.status {
            None => Vec::new(),
            Some(0) => vec![DeliveryState::Delivered],
            Some(1) => vec![DeliveryState::Pending],
            Some(2) if expanded => vec![DeliveryState::Exhausted],
            Some(2) => vec![DeliveryState::Exhausted, DeliveryState::Cancelled],
            Some(3) => vec![DeliveryState::Retrying],
            Some(_) => vec![DeliveryState::Cancelled],
        }
    }

    fn shown(self, state: DeliveryState) -> (u8, &'static str) {
        match state {
            DeliveryState::Delivered => (0, "success"),
            DeliveryState::Pending => (1, "pending"),
            DeliveryState::Exhausted => (2, "fail"),
            DeliveryState::Retrying => (3, "sending"),
            DeliveryState::Cancelled if self.expanded_statuses.unwrap_or(false) => (4, "canceled"),
            DeliveryState::Cancelled => (2, "fail"),
        }
    }

    /// An attempt has succeeded or failed; the other statuses are a delivery's, and no attempt has them.
    fn attempts(self) -> Option<Option<bool>> {
        match self.status {
            None => Some(None),
            Some(0) => Some(Some(true)),
            Some(2) => Some(Some(false)),
            Some(_) => None,
        }
    }
}

/// Which endpoint.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EndpointQuery {
    /// To this endpoint, by id or uid.
    endpoint_id: Option<String>,
}

impl FromParams for EndpointQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        let endpoint_id = params
            .text("endpoint_id")
            .filter(|text| !text.is_empty())
            .map(str::to_owned);
        Ok(Self { endpoint_id })
    }
}

fn show_attempt(row: AttemptRow, with_content: bool) -> MessageAttemptOut {
    let success = row.attempt.class == AttemptClass::Success;
    let response = if with_content {
        String::from_utf8_lossy(&row.attempt.response).into_owned()
    } else {
        String::new()
    };
    MessageAttemptOut {
        id: row.attempt.id,
        msg_id: row.message,
        endpoint_id: row.endpoint,
        url: row.attempt.url,
        response,
        response_status_code: row.attempt.status,
        response_duration_ms: u64::try_from(row.attempt.duration.as_millis()).unwrap_or(u64::MAX),
        status: if success { 0 } else { 2 },
        status_text: if success { "success" } else { "fail" },
        trigger_type: row.trigger as u8,
        timestamp: show_time(row.attempt.started_at),
        msg: None,
    }
}

/// List attempts to an endpoint, newest first.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/attempt/endpoint/{endpoint_id}", tag = "Message attempt", operation_id = "v1.message-attempt.list-by-endpoint",
    params(("app_id" = String, Path), ("endpoint_id" = String, Path), PageQuery, MessageQuery, StatusQuery, ContentQuery),
    responses((status = 200, body = ListResponse<MessageAttemptOut>), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list_by_endpoint(
    State(api): State<Api>,
    Path((app, endpoint)): Path<(String, String)>,
    Query(page): Query<PageQuery>,
    Query(query): Query<MessageQuery>,
    Query(status): Query<StatusQuery>,
    Query(content): Query<ContentQuery>,
) -> Result<Json<ListResponse<MessageAttemptOut>>, Error> {
    let (app, endpoint) = api.app_endpoint(&app, &endpoint).await?;
    let filter = AttemptFilter {
        endpoint: Some(endpoint.id),
        ..attempt_filter(query, status)
    };
    let rows = attempts(&api, app.id, &filter, &page, status).await?;
    let mut list = page.respond(
        rows,
        |row| row.attempt.id.to_string(),
        |row| show_attempt(row, content.wanted()),
    );
    if status.with_msg.unwrap_or(false) {
        for attempt in &mut list.data {
            let message = api.store.message(app.id, attempt.msg_id, false).await?;
            attempt.msg = message.map(|row| MessageOut::new(&row.message, false));
        }
    }
    Ok(Json(list))
}

fn attempt_filter(query: MessageQuery, status: StatusQuery) -> AttemptFilter {
    AttemptFilter {
        endpoint: None,
        message: None,
        success: status.attempts().flatten(),
        status_class: status.status_code_class.map(|class| class / 100),
        event_types: query.event_types,
        channel: query.channel,
        range: TimeRange {
            after: query.after,
            before: query.before,
        },
    }
}

async fn attempts(
    api: &Api,
    app: postrider_model::AppId,
    filter: &AttemptFilter,
    page: &PageQuery,
    status: StatusQuery,
) -> Result<Vec<AttemptRow>, Error> {
    let store_page = page.page(true)?;
    if status.attempts().is_none() {
        return Ok(Vec::new());
    }
    Ok(api.store.attempts(app, filter, &store_page).await?)
}

/// List attempts to deliver a message, newest first.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/attempt/msg/{msg_id}", tag = "Message attempt", operation_id = "v1.message-attempt.list-by-msg",
    params(("app_id" = String, Path), ("msg_id" = String, Path), PageQuery, MessageQuery, StatusQuery, ContentQuery, EndpointQuery),
    responses((status = 200, body = ListResponse<MessageAttemptOut>), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list_by_msg(
    State(api): State<Api>,
    Path((app, message)): Path<(String, String)>,
    Query(page): Query<PageQuery>,
    Query(query): Query<MessageQuery>,
    Query(status): Query<StatusQuery>,
    Query(content): Query<ContentQuery>,
    Query(to): Query<EndpointQuery>,
) -> Result<Json<ListResponse<MessageAttemptOut>>, Error> {
    let app = api.app(&app).await?;
    let message = find(&api, app.id, &message, false).await?.message;
    let endpoint = match to.endpoint_id {
        Some(name) => Some(api.endpoint(app.id, &name).await?.id),
        None => None,
    };
    let filter = AttemptFilter {
        endpoint,
        message: Some(message.id),
        ..attempt_filter(query, status)
    };
    let rows = attempts(&api, app.id, &filter, &page, status).await?;
    let mut list = page.respond(
        rows,
        |row| row.attempt.id.to_string(),
        |row| show_attempt(row, content.wanted()),
    );
    if status.with_msg.unwrap_or(false) {
        for attempt in &mut list.data {
            attempt.msg = Some(MessageOut::new(&message, false));
        }
    }
    Ok(Json(list))
}

/// List an endpoint's messages with how their deliveries stand, newest first.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}/msg", tag = "Message attempt", operation_id = "v1.message-attempt.list-attempted-messages",
    params(("app_id" = String, Path), ("endpoint_id" = String, Path), PageQuery, MessageQuery, StatusQuery, ContentQuery),
    responses((status = 200, body = ListResponse<EndpointMessageOut>), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list_attempted_messages(
    State(api): State<Api>,
    Path((app, endpoint)): Path<(String, String)>,
    Query(page): Query<PageQuery>,
    Query(query): Query<MessageQuery>,
    Query(status): Query<StatusQuery>,
    Query(content): Query<ContentQuery>,
) -> Result<Json<ListResponse<EndpointMessageOut>>, Error> {
    let store_page: Page<MessageId> = page.page(true)?;
    let (app, endpoint) = api.app_endpoint(&app, &endpoint).await?;
    let filter = DeliveryFilter {
        states: status.states(),
        event_types: query.event_types,
        channel: query.channel,
        range: TimeRange {
            after: query.after,
            before: query.before,
        },
    };
    let with_payload = content.wanted();
    let rows = api
        .store
        .deliveries_of_endpoint(app.id, endpoint.id, &filter, &store_page, with_payload)
        .await?;
    let show = |(delivery, row): (DeliveryRow, MessageRow)| {
        let (shown, text) = status.shown(delivery.state);
        EndpointMessageOut {
            message: MessageOut::new(&row.message, with_payload),
            status: shown,
            status_text: text,
            next_attempt: next_attempt(&delivery),
        }
    };
    Ok(Json(page.respond(
        rows,
        |(delivery, _)| delivery.message.to_string(),
        show,
    )))
}

fn next_attempt(delivery: &DeliveryRow) -> Option<String> {
    delivery.waiting.map(|(due, _)| show_time(due))
}

/// List the endpoints that a message goes to, with how its deliveries stand.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/msg/{msg_id}/endpoint", tag = "Message attempt", operation_id = "v1.message-attempt.list-attempted-destinations",
    params(("app_id" = String, Path), ("msg_id" = String, Path), PageQuery, StatusQuery),
    responses((status = 200, body = ListResponse<MessageEndpointOut>), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list_attempted_destinations(
    State(api): State<Api>,
    Path((app, message)): Path<(String, String)>,
    Query(page): Query<PageQuery>,
    Query(status): Query<StatusQuery>,
) -> Result<Json<ListResponse<MessageEndpointOut>>, Error> {
    let store_page: Page<EndpointId> = page.page(false)?;
    let app = api.app(&app).await?;
    let message = find(&api, app.id, &message, false).await?.message;
    let rows = api
        .store
        .deliveries_of_message(app.id, message.id, &store_page)
        .await?;
    let found = api.cache.get(&AppRef::Id(app.id)).await?;
    let entry = match found {
        Some(entry) => api.cache.fresh(&AppRef::Id(app.id), entry, None).await?,
        None => None,
    };
    let known = |row: &DeliveryRow| -> Option<Endpoint> {
        let endpoint = entry.as_ref()?.snapshot.endpoint(row.endpoint)?;
        Some(endpoint.as_ref().clone())
    };
    let list = page.respond(rows, |row| row.endpoint.to_string(), |row| (known(&row), row));
    let mut data: Vec<(Endpoint, DeliveryRow)> = Vec::with_capacity(list.data.len());
    for (endpoint, row) in list.data {
        // A deleted endpoint has nothing to show. Deliveries by hand follow the automatic one of their endpoint.
        let Some(endpoint) = endpoint else { continue };
        match data.last_mut() {
            Some((last, shown)) if last.id == endpoint.id => {
                if rank(row.state) < rank(shown.state) {
                    *shown = row;
                }
            }
            _ => data.push((endpoint, row)),
        }
    }
    let show = |(endpoint, row): (Endpoint, DeliveryRow)| {
        let (shown, text) = status.shown(row.state);
        MessageEndpointOut {
            endpoint: endpoint.into(),
            status: shown,
            status_text: text,
            next_attempt: next_attempt(&row),
        }
    };
    Ok(Json(ListResponse {
        data: data.into_iter().map(show).collect(),
        iterator: list.iterator,
        prev_iterator: list.prev_iterator,
        done: list.done,
    }))
}

/// Of several deliveries of a message to an endpoint, the best one tells how it stands.
fn rank(state: DeliveryState) -> u8 {
    match state {
        DeliveryState::Delivered => 0,
        DeliveryState::Retrying => 1,
        DeliveryState::Pending => 2,
        DeliveryState::Exhausted => 3,
        DeliveryState::Cancelled => 4,
    }
}

/// Get an attempt.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/msg/{msg_id}/attempt/{attempt_id}", tag = "Message attempt", operation_id = "v1.message-attempt.get",
    params(("app_id" = String, Path), ("msg_id" = String, Path), ("attempt_id" = String, Path)),
    responses((status = 200, body = MessageAttemptOut), (status = 404, body = ErrorOut))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path((app, message, attempt)): Path<(String, String, String)>,
) -> Result<Json<MessageAttemptOut>, Error> {
    let id: AttemptId = attempt.parse().map_err(|_| Error::not_found())?;
    let app = api.app(&app).await?;
    let message = find(&api, app.id, &message, false).await?.message.id;
    let found = api.store.attempt(app.id, message, id).await?;
    Ok(Json(show_attempt(found.ok_or_else(Error::not_found)?, true)))
}

/// Remove an attempt's response.
#[utoipa::path(
    delete, path = "/api/v1/app/{app_id}/msg/{msg_id}/attempt/{attempt_id}/content", tag = "Message attempt", operation_id = "v1.message-attempt.expunge-content",
    params(("app_id" = String, Path), ("msg_id" = String, Path), ("attempt_id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorOut))
)]
pub(crate) async fn expunge_content(
    State(api): State<Api>,
    Path((app, message, attempt)): Path<(String, String, String)>,
) -> Result<StatusCode, Error> {
    let id: AttemptId = attempt.parse().map_err(|_| Error::not_found())?;
    let app = api.app(&app).await?;
    let message = find(&api, app.id, &message, false).await?.message.id;
    if api.store.expunge_attempt(app.id, message, id).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Error::not_found())
    }
}

/// Send a message to an endpoint again.
#[utoipa::path(
    post, path = "/api/v1/app/{app_id}/msg/{msg_id}/endpoint/{endpoint_id}/resend", tag = "Message attempt", operation_id = "v1.message-attempt.resend",
    params(("app_id" = String, Path), ("msg_id" = String, Path), ("endpoint_id" = String, Path), ("idempotency-key" = Option<String>, Header)),
    responses((status = 202, body = EmptyResponse), (status = 400, description = "The endpoint is disabled or the payload gone", body = ErrorOut), (status = 404, body = ErrorOut), (status = 503, body = ErrorOut))
)]
pub(crate) async fn resend(
    State(api): State<Api>,
    Path((app, message, endpoint)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    may_begin(&api)?;
    let key = IdempotencyKey::from_headers(&headers)?;
    endpoint_ref(&endpoint).ok_or_else(Error::not_found)?;
    let (app, endpoint) = api.app_endpoint(&app, &endpoint).await?;
    if endpoint.disabled {
        return Err(Error::bad_request(
            "endpoint_disabled",
            "The endpoint is disabled; enable it first.",
        ));
    }
    let message = with_payload(find(&api, app.id, &message, true).await?)?;
    // The key alone makes a repeat the same delivery: no claim is needed.
    let nonce = key.map_or_else(rand::random, |key| key.hash(app.id));
    let delivery = DeliveryId::derive_again(message.id, endpoint.id, &nonce);
    let load = Load::by_hand(&api, message, &endpoint, delivery);
    publish(&api, load).await.map_err(|(error, _)| error)?;
    Ok((StatusCode::ACCEPTED, Json(EmptyResponse {})).into_response())
}

const _: () = assert!(
    Trigger::Scheduled as u8 == 0 && Trigger::Manual as u8 == 1,
    "the wire's numbers"
);

//! Sending a message to an endpoint again, by hand.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use postrider_model::{DeliveryId, DeliveryState, EndpointId, Message};
use postrider_store::Page;
use postrider_telemetry::labels::Duplicate;
use serde::Serialize;
use utoipa::ToSchema;

use super::Path;
use super::message::{find, with_payload};
use crate::accept::{Load, may_begin, publish};
use crate::error::{Error, ErrorOut};
use crate::goes_on::GoesOn;
use crate::idempotency::IdempotencyKey;
use crate::state::{Api, check_enabled};

/// Nothing to say.
#[derive(Serialize, ToSchema)]
pub(crate) struct EmptyResponse {}

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
    let (app, endpoint) = api.app_endpoint(&app, &endpoint).await?;
    let found = find(&api, app.id, &message, true).await?;
    // The key alone makes a repeat the same delivery: no claim is needed.
    let is_repeatable = key.is_some();
    let nonce = key.map_or_else(rand::random, |key| key.hash(app.id));
    let delivery = DeliveryId::derive_again(found.message.id, endpoint.id, &nonce);
    if is_repeatable && is_begun(&api, &found.message, endpoint.id, delivery).await? {
        api.telemetry.duplicate(Duplicate::IdempotencyKey);
        return Ok((StatusCode::ACCEPTED, Json(EmptyResponse {})).into_response());
    }
    check_enabled(&endpoint)?;
    let load = Load::by_hand(&api, with_payload(found)?, &endpoint, delivery);
    let owner = api.clone();
    let published = GoesOn::new(&api.tasks, async move { publish(&owner, load).await });
    published.await.map_err(|(error, _)| error)?;
    Ok((StatusCode::ACCEPTED, Json(EmptyResponse {})).into_response())
}

/// Whether an earlier request made the delivery: on record it was tried, or it waits. One of which no more is known than
/// that it was made is made again, since its job may have been lost on the way to the broker.
async fn is_begun(api: &Api, message: &Message, endpoint: EndpointId, id: DeliveryId) -> Result<bool, Error> {
    let before = u128::from_be_bytes(*id.as_bytes()).saturating_sub(1);
    let before = DeliveryId::from_slice(&before.to_be_bytes());
    let page = Page {
        after: before.map(|before| (endpoint, before)),
        backwards: false,
        descending: false,
        limit: 1,
    };
    let rows = api
        .store
        .deliveries_of_message(message.app, message.id, &page)
        .await?;
    let row = rows.first().filter(|row| row.id == id);
    Ok(row.is_some_and(|row| row.state != DeliveryState::Pending || row.waiting.is_some()))
}

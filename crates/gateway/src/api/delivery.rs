//! Deliveries: how a message stands at each endpoint, and the other way round.

use std::fmt;
use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use postrider_model::{AppId, DeliveryId, DeliveryState, EndpointId, MessageId};
use postrider_store::{AppRef, DeliveryFilter, DeliveryRow, MessageRow, Page, Part};
use serde::Serialize;
use utoipa::ToSchema;

use super::Path;
use super::delivery_query::StatusQuery;
use super::endpoint_out::EndpointOut;
use super::message::find;
use super::message_out::MessageOut;
use super::message_query::{ContentQuery, MessageQuery};
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::page::{ListResponse, PageQuery, Query, show_time};
use crate::state::Api;

/// Deliveries of a message that are read at once. Where all of them are to one endpoint, its further ones do not count.
const READ_ROWS: u32 = 250;

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

/// A place in the list of an endpoint's messages. A message has a row for each of its deliveries, so a place has both.
struct Place {
    message: MessageId,
    delivery: DeliveryId,
}

impl Place {
    fn of(row: &DeliveryRow) -> Self {
        Self {
            message: row.message,
            delivery: row.id,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.message, self.delivery)
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || {
            Error::invalid(
                &["query", "iterator"],
                "Must be an iterator from an earlier page.",
            )
        };
        let (message, delivery) = text.split_once('.').ok_or_else(bad)?;
        Ok(Self {
            message: message.parse().map_err(|_| bad())?,
            delivery: delivery.parse().map_err(|_| bad())?,
        })
    }
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
    let store_page = page
        .page::<Place>(true)?
        .map(|place| (place.message, place.delivery));
    let (app, endpoint) = api.app_endpoint(&app, &endpoint).await?;
    let filter = DeliveryFilter {
        states: status.states(),
        range: query.range(),
        event_types: query.event_types,
        channel: query.channel,
    };
    let with_payload = content.wanted();
    let part = api
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
    let part = Part {
        rows: part.rows,
        cut: part.cut.map(|(message, delivery)| Place { message, delivery }),
    };
    Ok(Json(page.respond_part(
        part,
        |(delivery, _)| Place::of(delivery),
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
    let rows = destinations(&api, app.id, message.id, &store_page).await?;
    let app = AppRef::Id(app.id);
    let entry = match api.cache.get(&app).await? {
        Some(entry) => api.cache.fresh(&app, entry, None).await?,
        None => None,
    };
    let states = status.states();
    // A deleted endpoint has nothing to show.
    let show = |row: DeliveryRow| {
        if !states.is_empty() && !states.contains(&row.state) {
            return None;
        }
        let endpoint = entry.as_ref()?.snapshot.endpoint(row.endpoint)?;
        let (shown, text) = status.shown(row.state);
        Some(MessageEndpointOut {
            endpoint: endpoint.as_ref().clone().into(),
            status: shown,
            status_text: text,
            next_attempt: next_attempt(&row),
        })
    };
    let list = page.respond(rows, |row| row.endpoint.to_string(), show);
    Ok(Json(ListResponse {
        data: list.data.into_iter().flatten().collect(),
        iterator: list.iterator,
        prev_iterator: list.prev_iterator,
        done: list.done,
    }))
}

/// One delivery for each endpoint that a message goes to, the one that tells best how it stands: those of a page and
/// one more where there are more, in the page's order.
async fn destinations(
    api: &Api,
    app: AppId,
    message: MessageId,
    page: &Page<EndpointId>,
) -> Result<Vec<DeliveryRow>, Error> {
    let wanted = usize::try_from(page.limit)
        .unwrap_or(usize::MAX)
        .saturating_add(1);
    let descending = page.descending != page.backwards;
    // Beyond all deliveries to the cursor's endpoint.
    let edge =
        DeliveryId::from_slice(&[if descending { 0 } else { 0xff }; 16]).ok_or_else(Error::internal)?;
    let mut after = page.after.map(|endpoint| (endpoint, edge));
    let mut found: Vec<DeliveryRow> = Vec::new();
    loop {
        // Backwards is forwards the other way round.
        let read = Page {
            after,
            backwards: false,
            descending,
            limit: READ_ROWS,
        };
        let rows = api.store.deliveries_of_message(app, message, &read).await?;
        let more = rows.len() > usize::try_from(READ_ROWS).unwrap_or(usize::MAX);
        let ends = rows.first().zip(rows.last());
        after = ends.map(|(first, last)| {
            let is_one = first.endpoint == last.endpoint;
            (last.endpoint, if is_one { edge } else { last.id })
        });
        for row in rows {
            match found.last_mut() {
                Some(best) if best.endpoint == row.endpoint => {
                    if rank(&row) < rank(best) {
                        *best = row;
                    }
                }
                _ => found.push(row),
            }
        }
        // The last one that was found only tells that there are more.
        if !more || found.len() >= wanted {
            break;
        }
    }
    found.truncate(wanted);
    if page.backwards {
        found.reverse();
    }
    Ok(found)
}

/// Of several deliveries of a message to an endpoint, the best one tells how it stands.
fn rank(row: &DeliveryRow) -> (u8, u8) {
    let state = match row.state {
        DeliveryState::Delivered => 0,
        DeliveryState::Retrying => 1,
        DeliveryState::Pending => 2,
        DeliveryState::Exhausted => 3,
        DeliveryState::Cancelled => 4,
    };
    // The automatic one before those by hand.
    (state, row.trigger as u8)
}

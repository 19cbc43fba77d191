//! Deliveries, by endpoint and by message.

use postrider_model::{AppId, DeliveryId, EndpointId, MessageId};
use postrider_secrets::Keyring;
use postrider_store::{DeliveryFilter, DeliveryRow, MessageRow, Page, Part, TimeRange};
use rusqlite::{Connection, Row, params};

use super::look::{is_wanted, look};
use super::messages::{MESSAGE_COLUMNS, MESSAGE_WIDTH, message_filter, read_message, with_payload};
use crate::codec::{self, Walk};
use crate::error::Fallible;

const DELIVERY_COLUMNS: &str =
    "d.id, d.message, d.endpoint, d.state, d.attempts, d.origin, w.due_at, w.reason";
/// Columns of [`DELIVERY_COLUMNS`].
const DELIVERY_WIDTH: usize = 8;

fn read_delivery(row: &Row<'_>) -> rusqlite::Result<DeliveryRow> {
    let waiting = match codec::time_opt(row, 6)? {
        None => None,
        Some(due) => Some((due, codec::reason(row, 7)?)),
    };
    Ok(DeliveryRow {
        id: codec::id(row, 0)?,
        message: codec::id(row, 1)?,
        endpoint: codec::id(row, 2)?,
        state: codec::state(row, 3)?,
        attempts: row.get(4)?,
        trigger: codec::origin(row, 5)?,
        waiting,
    })
}

/// Walks an endpoint's deliveries; the last column is the filter's answer.
pub(crate) fn of_endpoint_sql(walk: &Walk) -> String {
    let order = walk.order();
    format!(
        "SELECT {DELIVERY_COLUMNS}, {MESSAGE_COLUMNS},
            (?6 = '[]' OR d.state IN (SELECT value FROM json_each(?6))) AND {}
         FROM deliveries d JOIN messages m ON m.id = d.message LEFT JOIN waiting w ON w.delivery = d.id
         WHERE d.endpoint = ?1 AND (d.message, d.id) > (?2, ?3) AND (d.message, d.id) < (?4, ?5) AND m.app = ?9
         ORDER BY d.message {order}, d.id {order}",
        message_filter!("?7", "?8"),
    )
}

/// Which endpoint's deliveries, and how much of their messages.
pub(super) struct OfEndpoint {
    pub(super) app: AppId,
    pub(super) endpoint: EndpointId,
    pub(super) filter: DeliveryFilter,
    pub(super) page: Page<(MessageId, DeliveryId)>,
    pub(super) with_payload: bool,
}

pub(super) fn of_endpoint(
    connection: &Connection,
    keyring: &Keyring,
    query: &OfEndpoint,
) -> Fallible<Part<(DeliveryRow, MessageRow), (MessageId, DeliveryId)>> {
    let OfEndpoint { filter, page, .. } = query;
    let walk = Walk::of(page);
    let after = page.after.as_ref();
    let [low, low_id, high, high_id] = walk.span(
        after.map(|(message, id)| (message.as_bytes(), id.as_bytes())),
        filter.range,
    );
    let states: Vec<i64> = filter.states.iter().copied().map(codec::state_number).collect();
    let mut statement = connection.prepare_cached(&of_endpoint_sql(&walk))?;
    let rows = statement.query(params![
        query.endpoint.as_bytes(),
        low,
        low_id,
        high,
        high_id,
        codec::to_json(&states)?,
        codec::to_json(&filter.event_types)?,
        filter.channel,
        query.app.as_bytes(),
    ])?;
    let read = |row: &Row<'_>| {
        if !is_wanted(row, DELIVERY_WIDTH + MESSAGE_WIDTH)? {
            return Ok(None);
        }
        let message = read_message(row, DELIVERY_WIDTH)?;
        let message = with_payload(connection, keyring, message, query.with_payload)?;
        Ok(Some((read_delivery(row)?, message)))
    };
    let payload_bytes = |(_, row): &(DeliveryRow, MessageRow)| row.message.payload.len();
    let place = |row: &Row<'_>| Ok((codec::id(row, 1)?, codec::id(row, 0)?));
    look(rows, &walk, filter.is_selective(), read, payload_bytes, place)
}

/// Walks a message's deliveries.
pub(crate) fn of_message_sql(walk: &Walk) -> String {
    let order = walk.order();
    format!(
        "SELECT {DELIVERY_COLUMNS}
         FROM deliveries d JOIN messages m ON m.id = d.message LEFT JOIN waiting w ON w.delivery = d.id
         WHERE d.message = ?1 AND m.app = ?2 AND (d.endpoint, d.id) > (?3, ?4) AND (d.endpoint, d.id) < (?5, ?6)
         ORDER BY d.endpoint {order}, d.id {order} LIMIT ?7",
    )
}

pub(super) fn of_message(
    connection: &Connection,
    app: AppId,
    message: MessageId,
    page: &Page<(EndpointId, DeliveryId)>,
) -> Fallible<Vec<DeliveryRow>> {
    let walk = Walk::of(page);
    let after = page.after.as_ref();
    let [low, low_id, high, high_id] = walk.span(
        after.map(|(endpoint, id)| (endpoint.as_bytes(), id.as_bytes())),
        TimeRange::default(),
    );
    let rows = connection
        .prepare_cached(&of_message_sql(&walk))?
        .query_map(
            params![
                message.as_bytes(),
                app.as_bytes(),
                low,
                low_id,
                high,
                high_id,
                walk.rows
            ],
            read_delivery,
        )?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(walk.arrange(rows))
}

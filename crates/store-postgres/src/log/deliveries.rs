//! Deliveries of an endpoint and of a message.

use postrider_model::{
    AppId, DeferReason, DeliveryId, DeliveryState, EndpointId, MessageId, Trigger, UnixMillis,
};
use postrider_store::{DeliveryFilter, DeliveryRow, MessageRow, Page, Part, TimeRange};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::messages::{self, body_join, message_columns};
use super::reading::{Reading, STEP_SKIPS};
use crate::PostgresStore;
use crate::error::{Work, corrupt};
use crate::row::{Place, Window, clean_all, clean_opt, keyset, same_millisecond, to_u32};

macro_rules! delivery_columns {
    () => {
        "d.id AS delivery, d.message, d.endpoint, d.state, d.attempts, d.trigger, w.due_at, w.reason"
    };
}

pub(super) async fn of_endpoint(
    store: &PostgresStore,
    app: AppId,
    endpoint: EndpointId,
    filter: &DeliveryFilter,
    page: &Page<(MessageId, DeliveryId)>,
    with_payload: bool,
) -> Work<Part<(DeliveryRow, MessageRow), (MessageId, DeliveryId)>> {
    // The bounds on the delivery's id choose the partitions; those on the message are the index's; those on both are
    // the keyset.
    const LIST: [&str; 2] = keyset!(
        concat!(
            "SELECT ",
            message_columns!(),
            ", ",
            delivery_columns!(),
            " FROM deliveries d JOIN messages m ON m.id = d.message",
            body_join!("$2"),
            " LEFT JOIN waiting w ON w.delivery = d.id \
             WHERE d.endpoint = $3 AND d.app = $4 AND d.message >= $5 AND d.message <= $6 AND d.id >= $7 AND d.id < $8 \
             AND (d.message, d.id) >= ($5, $12) AND (d.message, d.id) < ($6, $13) \
             AND (cardinality($9::smallint[]) = 0 OR d.state = ANY($9)) \
             AND (cardinality($10::text[]) = 0 OR m.event_type = ANY($10)) \
             AND ($11::text IS NULL OR m.channels ? $11)"
        ),
        "d.message",
        "d.id"
    );
    let window = Window::of_pairs(page, filter.range, |(message, id)| {
        (message.as_uuid(), id.as_uuid())
    });
    let states: Vec<i16> = filter
        .states
        .iter()
        .map(|state| i16::from(*state as u8))
        .collect();
    let mut connection = store.read.acquire().await?;
    let mut reading = Reading::new(window, filter.is_selective());
    while let Some((left, in_steps)) = reading.left() {
        let edge = if in_steps {
            step_end(&mut connection, app, endpoint, &left).await?
        } else {
            None
        };
        let step = reading.step(left, edge);
        let rows = sqlx::query(LIST[usize::from(step.descending)])
            .persistent(!in_steps)
            .bind(step.limit)
            .bind(with_payload)
            .bind(endpoint.as_uuid())
            .bind(app.as_uuid())
            .bind(step.low)
            .bind(step.high)
            .bind(same_millisecond(step.low).0)
            .bind(same_millisecond(step.high).1)
            .bind(&states)
            .bind(clean_all(&filter.event_types))
            .bind(clean_opt(filter.channel.as_ref()))
            .bind(step.low_second)
            .bind(step.high_second)
            .fetch(&mut *connection);
        let decode = |row: &PgRow| Ok((decode(row)?, messages::decode(store, row, with_payload)?));
        let payload_bytes = |(_, row): &(DeliveryRow, MessageRow)| row.message.payload.len();
        let place = |(row, _): &(DeliveryRow, MessageRow)| (row.message.as_uuid(), row.id.as_uuid());
        reading.take(rows, decode, payload_bytes, place).await?;
    }
    Ok(reading.part(|(message, id)| (MessageId::from_uuid(message), DeliveryId::from_uuid(id))))
}

/// The last row of the first step through a window.
async fn step_end(
    connection: &mut PgConnection,
    app: AppId,
    endpoint: EndpointId,
    window: &Window,
) -> Work<Option<Place>> {
    const NTH: [&str; 2] = keyset!(
        skip "SELECT d.message, d.id FROM deliveries d \
              WHERE d.endpoint = $2 AND d.app = $3 AND d.message >= $4 AND d.message <= $5 AND d.id >= $6 AND d.id < $7 \
              AND (d.message, d.id) >= ($4, $8) AND (d.message, d.id) < ($5, $9)",
        "d.message",
        "d.id"
    );
    let place = sqlx::query_as(NTH[usize::from(window.descending)])
        .persistent(false)
        .bind(STEP_SKIPS)
        .bind(endpoint.as_uuid())
        .bind(app.as_uuid())
        .bind(window.low)
        .bind(window.high)
        .bind(same_millisecond(window.low).0)
        .bind(same_millisecond(window.high).1)
        .bind(window.low_second)
        .bind(window.high_second)
        .fetch_optional(connection)
        .await?;
    Ok(place)
}

pub(super) async fn of_message(
    store: &PostgresStore,
    app: AppId,
    message: MessageId,
    page: &Page<(EndpointId, DeliveryId)>,
) -> Work<Vec<DeliveryRow>> {
    const LIST: [&str; 2] = keyset!(
        concat!(
            "SELECT ",
            delivery_columns!(),
            " FROM deliveries d LEFT JOIN waiting w ON w.delivery = d.id \
             WHERE d.id >= $2 AND d.id < $3 AND d.message = $4 AND d.app = $5 \
             AND (d.endpoint, d.id) >= ($6, $7) AND (d.endpoint, d.id) < ($8, $9)"
        ),
        "d.endpoint",
        "d.id"
    );
    let window = Window::of_pairs(page, TimeRange::default(), |(endpoint, id)| {
        (endpoint.as_uuid(), id.as_uuid())
    });
    let (low, high) = same_millisecond(message.as_uuid());
    let rows = sqlx::query(LIST[usize::from(window.descending)])
        .bind(window.limit)
        .bind(low)
        .bind(high)
        .bind(message.as_uuid())
        .bind(app.as_uuid())
        .bind(window.low)
        .bind(window.low_second)
        .bind(window.high)
        .bind(window.high_second)
        .fetch_all(&store.read)
        .await?;
    let found = rows.iter().map(decode).collect::<Work<Vec<_>>>()?;
    Ok(window.arrange(found))
}

fn decode(row: &PgRow) -> Work<DeliveryRow> {
    let id = DeliveryId::from_uuid(row.try_get("delivery")?);
    let due_at: Option<i64> = row.try_get("due_at")?;
    let reason: Option<i16> = row.try_get("reason")?;
    Ok(DeliveryRow {
        id,
        message: MessageId::from_uuid(row.try_get("message")?),
        endpoint: EndpointId::from_uuid(row.try_get("endpoint")?),
        state: to_state(row.try_get("state")?)?,
        attempts: to_u32(row.try_get("attempts")?)?,
        trigger: to_trigger(row.try_get("trigger")?),
        waiting: due_at
            .zip(reason)
            .map(|(due_at, reason)| to_reason(reason).map(|reason| (UnixMillis(due_at), reason)))
            .transpose()?,
    })
}

pub(crate) fn to_state(stored: i16) -> Work<DeliveryState> {
    DeliveryState::from_stored(stored).ok_or_else(|| corrupt(format!("{stored} is not a delivery state")))
}

pub(crate) fn to_reason(stored: i16) -> Work<DeferReason> {
    DeferReason::from_stored(stored).ok_or_else(|| corrupt(format!("{stored} is not a reason to wait")))
}

pub(crate) fn to_trigger(stored: i16) -> Trigger {
    if stored == i16::from(Trigger::Manual as u8) {
        Trigger::Manual
    } else {
        Trigger::Scheduled
    }
}

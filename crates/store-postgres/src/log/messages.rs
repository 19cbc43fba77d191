//! Messages and their payloads.

use bytes::Bytes;
use postrider_model::{AppId, CancelReason, Message, MessageId, UnixMillis};
use postrider_store::{MessageFilter, MessageRow, Page, Part};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::reading::{Reading, STEP_SKIPS};
use crate::PostgresStore;
use crate::error::{Work, corrupt};
use crate::row::{Place, Window, clean, clean_all, clean_opt, keyset, same_millisecond};
use crate::upkeep::cancel::{self, Doomed};

/// The columns of a message `m`; `sealed` is read when `$with_payload` says so.
macro_rules! message_columns {
    () => {
        "m.id AS message, m.app, m.event_type, m.event_id, m.channels::text AS channels, m.content_type, \
         m.accepted_at, m.retention_days, m.traceparent, b.sealed"
    };
}
/// Joins the body of message `m`, wherever it is kept.
macro_rules! body_join {
    ($wanted:literal) => {
        concat!(
            " LEFT JOIN LATERAL (SELECT sealed FROM bodies WHERE bodies.id = m.id AND ",
            $wanted,
            " UNION ALL SELECT sealed FROM bodies_kept WHERE bodies_kept.id = m.id AND ",
            $wanted,
            " LIMIT 1) b ON true"
        )
    };
}
pub(crate) use {body_join, message_columns};

macro_rules! select {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            message_columns!(),
            " FROM messages m",
            body_join!("$2"),
            " WHERE ",
            $condition
        )
    };
}

pub(super) async fn by_id(
    store: &PostgresStore,
    app: AppId,
    id: MessageId,
    with_payload: bool,
) -> Work<Option<MessageRow>> {
    let row = sqlx::query(select!("m.id = $1 AND m.app = $3"))
        .bind(id.as_uuid())
        .bind(with_payload)
        .bind(app.as_uuid())
        .fetch_optional(&store.read)
        .await?;
    row.map(|row| decode(store, &row, with_payload)).transpose()
}

pub(super) async fn by_event_id(
    store: &PostgresStore,
    app: AppId,
    event_id: &str,
    with_payload: bool,
) -> Work<Option<MessageRow>> {
    let row = sqlx::query(select!(
        "m.app = $1 AND m.event_id = $3 ORDER BY m.id DESC LIMIT 1"
    ))
    .bind(app.as_uuid())
    .bind(with_payload)
    .bind(clean(event_id))
    .fetch_optional(&store.read)
    .await?;
    row.map(|row| decode(store, &row, with_payload)).transpose()
}

pub(super) async fn list(
    store: &PostgresStore,
    app: AppId,
    filter: &MessageFilter,
    page: &Page<MessageId>,
) -> Work<Part<MessageRow, MessageId>> {
    const LIST: [&str; 2] = keyset!(
        select!(
            "m.app = $3 AND m.id >= $4 AND m.id < $5 AND (cardinality($6::text[]) = 0 OR m.event_type = ANY($6)) \
             AND ($7::text IS NULL OR m.channels ? $7)"
        ),
        "m.id"
    );
    let window = Window::new(page, filter.range, MessageId::as_uuid);
    let mut connection = store.read.acquire().await?;
    let mut reading = Reading::new(window, filter.is_selective());
    while let Some((left, in_steps)) = reading.left() {
        let edge = if in_steps {
            step_end(&mut connection, app, &left).await?
        } else {
            None
        };
        let step = reading.step(left, edge);
        let rows = sqlx::query(LIST[usize::from(step.descending)])
            .persistent(!in_steps)
            .bind(step.limit)
            .bind(filter.with_payload)
            .bind(app.as_uuid())
            .bind(step.low)
            .bind(step.high)
            .bind(clean_all(&filter.event_types))
            .bind(clean_opt(filter.channel.as_ref()))
            .fetch(&mut *connection);
        let decode = |row: &PgRow| decode(store, row, filter.with_payload);
        let payload_bytes = |row: &MessageRow| row.message.payload.len();
        let place = |row: &MessageRow| (row.message.id.as_uuid(), Uuid::nil());
        reading.take(rows, decode, payload_bytes, place).await?;
    }
    Ok(reading.part(|(id, _)| MessageId::from_uuid(id)))
}

/// The last row of the first step through a window.
async fn step_end(connection: &mut PgConnection, app: AppId, window: &Window) -> Work<Option<Place>> {
    const NTH: [&str; 2] = keyset!(
        skip "SELECT m.id FROM messages m WHERE m.app = $2 AND m.id >= $3 AND m.id < $4",
        "m.id"
    );
    let id: Option<Uuid> = sqlx::query_scalar(NTH[usize::from(window.descending)])
        .persistent(false)
        .bind(STEP_SKIPS)
        .bind(app.as_uuid())
        .bind(window.low)
        .bind(window.high)
        .fetch_optional(connection)
        .await?;
    Ok(id.map(|id| (id, Uuid::nil())))
}

pub(super) async fn payload(store: &PostgresStore, id: MessageId) -> Work<Option<(String, Bytes)>> {
    let row = sqlx::query(select!("m.id = $1"))
        .bind(id.as_uuid())
        .bind(true)
        .fetch_optional(&store.read)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let found = decode(store, &row, true)?;
    Ok((!found.payload_gone).then_some((found.message.content_type, found.message.payload)))
}

pub(super) async fn expunge(store: &PostgresStore, app: AppId, id: MessageId) -> Work<bool> {
    let mut tx = store.write.begin().await?;
    let found: Option<bool> = sqlx::query_scalar("SELECT true FROM messages WHERE id = $1 AND app = $2")
        .bind(id.as_uuid())
        .bind(app.as_uuid())
        .fetch_optional(&mut *tx)
        .await?;
    if found.is_none() {
        return Ok(false);
    }
    let (low, high) = same_millisecond(id.as_uuid());
    let waiting = sqlx::query(
        "SELECT delivery, endpoint, message FROM waiting WHERE delivery >= $1 AND delivery < $2 AND message = $3 \
         ORDER BY delivery FOR UPDATE",
    )
    .bind(low)
    .bind(high)
    .bind(id.as_uuid())
    .fetch_all(&mut *tx)
    .await?;
    let doomed = waiting.iter().map(Doomed::decode).collect::<Work<Vec<_>>>()?;
    cancel::apply(&mut tx, &doomed, CancelReason::PayloadExpunged).await?;
    for statement in [
        "DELETE FROM bodies WHERE id = $1",
        "DELETE FROM bodies_kept WHERE id = $1",
    ] {
        sqlx::query(statement)
            .bind(id.as_uuid())
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(true)
}

/// A row of [`message_columns`].
pub(crate) fn decode(store: &PostgresStore, row: &PgRow, with_payload: bool) -> Work<MessageRow> {
    let id = MessageId::from_uuid(row.try_get("message")?);
    let sealed: Option<&[u8]> = row.try_get("sealed")?;
    let payload = match sealed {
        Some(sealed) => store.sealer.open_payload(id, sealed)?,
        None => Bytes::new(),
    };
    let channels: Option<&str> = row.try_get("channels")?;
    let channels = match channels {
        Some(channels) => {
            serde_json::from_str(channels).map_err(|_| corrupt(format!("channels of {id} are not a list")))?
        }
        None => Vec::new(),
    };
    Ok(MessageRow {
        payload_gone: with_payload && sealed.is_none(),
        message: Message {
            id,
            app: AppId::from_uuid(row.try_get("app")?),
            event_type: row.try_get("event_type")?,
            event_id: row.try_get("event_id")?,
            channels,
            content_type: row.try_get("content_type")?,
            payload,
            accepted_at: UnixMillis(row.try_get("accepted_at")?),
            payload_retention_days: row
                .try_get::<Option<i32>, _>("retention_days")?
                .map(|days| u16::try_from(days).unwrap_or(u16::MAX)),
            traceparent: row.try_get("traceparent")?,
        },
    })
}

//! Which messages of a task's chunk are to be delivered again.

use std::collections::HashSet;

use postrider_model::{DeliveryState, MessageId, is_subscribed};
use postrider_store::{TaskKind, TaskRow};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::Wanted;
use crate::error::{Work, corrupt};
use crate::log::deliveries::to_state;
use crate::record::write::column;
use crate::row::{floor, next, same_millisecond};

/// A chunk of a task.
pub(super) struct Found {
    /// Messages to deliver again.
    pub(super) messages: Vec<MessageId>,
    /// The last message looked at.
    pub(super) cursor: Option<MessageId>,
    pub(super) is_last: bool,
}

/// The task's next chunk, of at most `limit` messages. What has no payload any more is passed over.
pub(super) async fn chunk(
    connection: &mut PgConnection,
    task: &TaskRow,
    wanted: &Wanted,
    limit: i64,
) -> Work<Found> {
    let found = match task.kind {
        TaskKind::Recover => failed(connection, task, limit).await?,
        TaskKind::Replay => missed(connection, task, wanted, limit).await?,
    };
    Ok(Found {
        messages: with_body(connection, &found.messages).await?,
        ..found
    })
}

fn bounds(task: &TaskRow) -> (Uuid, Uuid) {
    let low = task
        .cursor
        .map_or_else(|| floor(task.since), |cursor| next(cursor.as_uuid()));
    (low, floor(task.until))
}

/// Messages with an exhausted delivery and none that was delivered or is on its way.
async fn failed(connection: &mut PgConnection, task: &TaskRow, limit: i64) -> Work<Found> {
    let (low, high) = bounds(task);
    // All deliveries of a message are looked at together, so messages are counted, not deliveries.
    let rows = sqlx::query(
        "SELECT message, array_agg(state) AS states FROM deliveries WHERE endpoint = $1 AND message >= $2 \
         AND message < $3 AND id >= $4 AND id < $5 GROUP BY message ORDER BY message LIMIT $6",
    )
    .bind(task.endpoint.as_uuid())
    .bind(low)
    .bind(high)
    .bind(same_millisecond(low).0)
    .bind(same_millisecond(high).1)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let mut messages = Vec::new();
    for row in &rows {
        let states = row
            .try_get::<Vec<i16>, _>("states")?
            .into_iter()
            .map(to_state)
            .collect::<Work<Vec<_>>>()?;
        let done_or_going = states
            .iter()
            .any(|state| !matches!(state, DeliveryState::Exhausted | DeliveryState::Cancelled));
        if states.contains(&DeliveryState::Exhausted) && !done_or_going {
            messages.push(MessageId::from_uuid(row.try_get("message")?));
        }
    }
    found(&rows, messages, limit)
}

/// Messages that the endpoint subscribes to, without a delivery that arrived or is on its way.
async fn missed(connection: &mut PgConnection, task: &TaskRow, wanted: &Wanted, limit: i64) -> Work<Found> {
    let (low, high) = bounds(task);
    let rows = sqlx::query(
        "SELECT id AS message, event_type, channels::text AS channels FROM messages \
         WHERE app = $1 AND id >= $2 AND id < $3 ORDER BY id LIMIT $4",
    )
    .bind(task.app.as_uuid())
    .bind(low)
    .bind(high)
    .bind(limit)
    .fetch_all(&mut *connection)
    .await?;
    let has_it = has_it(connection, task, &rows).await?;
    let mut messages = Vec::new();
    for row in &rows {
        let channels: Vec<String> = match row.try_get::<Option<&str>, _>("channels")? {
            Some(text) => serde_json::from_str(text).map_err(|_| corrupt("channels are not a list"))?,
            None => Vec::new(),
        };
        let subscription = (&wanted.event_types[..], &wanted.channels[..]);
        let message: Uuid = row.try_get("message")?;
        if !has_it.contains(&message) && is_subscribed(subscription, row.try_get("event_type")?, &channels) {
            messages.push(MessageId::from_uuid(message));
        }
    }
    found(&rows, messages, limit)
}

/// Those of the chunk's messages that arrived at the endpoint or are on their way. Bounded by their time, so that only the
/// partitions of their days are looked at.
async fn has_it(connection: &mut PgConnection, task: &TaskRow, chunk: &[PgRow]) -> Work<HashSet<Uuid>> {
    let (Some(first), Some(last)) = (chunk.first(), chunk.last()) else {
        return Ok(HashSet::new());
    };
    let (first, last): (Uuid, Uuid) = (first.try_get("message")?, last.try_get("message")?);
    let found: Vec<Uuid> = sqlx::query_scalar(
        "SELECT message FROM deliveries WHERE endpoint = $1 AND message >= $2 AND message <= $3 \
         AND id >= $4 AND id < $5 AND state IN (0, 1, 3)",
    )
    .bind(task.endpoint.as_uuid())
    .bind(first)
    .bind(last)
    .bind(same_millisecond(first).0)
    .bind(same_millisecond(last).1)
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().collect())
}

/// Those of the chunk's messages, which are in order, that still have a payload. Bounded by their time, as in [`has_it`].
async fn with_body(connection: &mut PgConnection, messages: &[MessageId]) -> Work<Vec<MessageId>> {
    let (Some(first), Some(last)) = (messages.first(), messages.last()) else {
        return Ok(Vec::new());
    };
    let found: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM bodies WHERE id = ANY($1) AND id >= $2 AND id <= $3 \
         UNION ALL SELECT id FROM bodies_kept WHERE id = ANY($1)",
    )
    .bind(column(messages, MessageId::as_uuid))
    .bind(first.as_uuid())
    .bind(last.as_uuid())
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(MessageId::from_uuid).collect())
}

fn found(rows: &[PgRow], messages: Vec<MessageId>, limit: i64) -> Work<Found> {
    let cursor = rows
        .last()
        .map(|row| row.try_get("message"))
        .transpose()?
        .map(MessageId::from_uuid);
    Ok(Found {
        messages,
        cursor,
        is_last: i64::try_from(rows.len()).is_ok_and(|rows| rows < limit),
    })
}

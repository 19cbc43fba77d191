//! The work of background tasks: new deliveries by hand, a chunk at a time, from a cursor that is kept. Each chunk is a
//! write of its own, so that one that fails undoes nothing else.

pub(crate) mod rows;

use postrider_model::{
    AppId, DeferReason, DeliveryId, DeliveryState, EndpointId, MessageId, Trigger, UnixMillis, is_subscribed,
};
use postrider_store::fold::StateCounts;
use postrider_store::{StoreError, TaskKind, TaskRow, TaskState};
use rusqlite::{Connection, OptionalExtension, params};

use crate::SqliteStore;
use crate::cancel::{self, Totals};
use crate::codec;
use crate::error::Fallible;
use crate::waiting;

/// Chunks of one sweep that find nothing to deliver.
const CHUNKS: u32 = 20;

/// What an endpoint subscribes to; `None` once it takes no deliveries.
struct Wanted {
    event_types: Vec<String>,
    channels: Vec<String>,
    ordered: bool,
}

/// Moves the task that has rested longest on by a chunk of at most `limit` messages; returns the deliveries made. A chunk
/// that finds nothing to deliver is followed by the next one, so that 0 means that no task has work left for now, or that
/// much was looked at.
pub(super) async fn advance(store: &SqliteStore, limit: u32) -> Result<u64, StoreError> {
    for _ in 0..CHUNKS {
        let Some(task) = store.read(rows::longest_rested).await? else {
            return Ok(0);
        };
        let kept = task.clone();
        match store
            .write(move |connection| go_on(connection, task, limit))
            .await
        {
            Ok(0) => {}
            Ok(made) => return Ok(made),
            Err(error) => {
                // The next one's turn: one that fails must not stand before the others. Where this fails too, the store is
                // away.
                let _ = store.write(move |connection| rows::rest(connection, &kept)).await;
                return Err(error);
            }
        }
    }
    Ok(0)
}

/// The task's next chunk; returns the deliveries made.
fn go_on(connection: &Connection, mut task: TaskRow, limit: u32) -> Fallible<u64> {
    let made = match wanted(connection, task.app, task.endpoint)? {
        None => {
            task.state = TaskState::Failed;
            0
        }
        Some(wanted) => chunk(connection, &mut task, &wanted, limit)?,
    };
    rows::rest(connection, &task)?;
    Ok(made)
}

fn wanted(connection: &Connection, app: AppId, endpoint: EndpointId) -> Fallible<Option<Wanted>> {
    let found = connection
        .prepare_cached(
            "SELECT event_types, channels, ordered FROM endpoints
             WHERE id = ?1 AND app = ?2 AND NOT disabled AND deleted_at IS NULL",
        )?
        .query_row(params![endpoint.as_bytes(), app.as_bytes()], |row| {
            Ok(Wanted {
                event_types: codec::from_json(row, 0)?,
                channels: codec::from_json(row, 1)?,
                ordered: row.get(2)?,
            })
        })
        .optional()?;
    Ok(found)
}

fn chunk(connection: &Connection, task: &mut TaskRow, wanted: &Wanted, limit: u32) -> Fallible<u64> {
    let messages = match task.kind {
        TaskKind::Recover => failed_messages(connection, task, limit)?,
        TaskKind::Replay => messages(connection, task, limit)?,
    };
    let mut made = 0;
    let mut totals = Totals::default();
    let mut counters = std::collections::HashMap::new();
    for found in &messages {
        if found.has_body
            && (task.kind == TaskKind::Recover || subscribes(wanted, found))
            && is_wanted(connection, task, found.id)?
            && make(connection, task, wanted, found.id)?
        {
            made += 1;
            totals.add(DeferReason::Manual, 1);
            let counts: &mut StateCounts = counters
                .entry((task.endpoint, cancel::hour_of(found.id)))
                .or_default();
            counts.add(DeliveryState::Pending, 1);
        }
    }
    totals.write(connection)?;
    cancel::count(connection, &counters)?;
    if made > 0 {
        let standing = waiting::standing(connection, task.endpoint)?;
        let due = if standing.held {
            UnixMillis::NEVER
        } else {
            UnixMillis::now()
        };
        waiting::wake(connection, task.endpoint, task.app, due, standing.doomed)?;
    }
    if let Some(last) = messages.last() {
        task.cursor = Some(last.id);
    }
    if messages.len() < usize::try_from(limit).unwrap_or(usize::MAX) {
        task.state = TaskState::Finished;
    }
    Ok(made)
}

struct Found {
    id: MessageId,
    event_type: String,
    channels: Vec<String>,
    has_body: bool,
}

fn read_found(row: &rusqlite::Row<'_>) -> rusqlite::Result<Found> {
    Ok(Found {
        id: codec::id(row, 0)?,
        event_type: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
        channels: codec::channels(row, 2)?,
        has_body: row.get(3)?,
    })
}

/// Where the chunk starts, as the least id, and where the task ends.
fn bounds(task: &TaskRow) -> (Vec<u8>, [u8; 16]) {
    let from = match task.cursor {
        Some(cursor) => [&cursor.as_bytes()[..], &[0]].concat(),
        None => MessageId::floor(task.since).as_bytes().to_vec(),
    };
    (from, *MessageId::floor(task.until).as_bytes())
}

/// Messages with a delivery of the endpoint in the task's time.
fn failed_messages(connection: &Connection, task: &TaskRow, limit: u32) -> Fallible<Vec<Found>> {
    let (from, to) = bounds(task);
    let messages = connection
        .prepare_cached(
            "SELECT d.message, m.event_type, m.channels, m.body IS NOT NULL
             FROM (SELECT DISTINCT message FROM deliveries WHERE endpoint = ?1 AND message >= ?2 AND message < ?3
                   ORDER BY message LIMIT ?4) d
             LEFT JOIN messages m ON m.id = d.message ORDER BY d.message",
        )?
        .query_map(params![task.endpoint.as_bytes(), from, to, limit], read_found)?
        .collect::<rusqlite::Result<_>>()?;
    Ok(messages)
}

/// Messages of the application in the task's time.
fn messages(connection: &Connection, task: &TaskRow, limit: u32) -> Fallible<Vec<Found>> {
    let (from, to) = bounds(task);
    let messages = connection
        .prepare_cached(
            "SELECT id, event_type, channels, body IS NOT NULL FROM messages
             WHERE app = ?1 AND id >= ?2 AND id < ?3 ORDER BY id LIMIT ?4",
        )?
        .query_map(params![task.app.as_bytes(), from, to, limit], read_found)?
        .collect::<rusqlite::Result<_>>()?;
    Ok(messages)
}

fn subscribes(wanted: &Wanted, found: &Found) -> bool {
    let subscription = (&wanted.event_types[..], &wanted.channels[..]);
    is_subscribed(subscription, &found.event_type, &found.channels)
}

/// Whether a message is to be delivered (again): nothing delivered it and nothing is about to; for a recovery,
/// something tried in vain.
fn is_wanted(connection: &Connection, task: &TaskRow, message: MessageId) -> Fallible<bool> {
    let states = connection
        .prepare_cached("SELECT state FROM deliveries WHERE message = ?1 AND endpoint = ?2")?
        .query_map(params![message.as_bytes(), task.endpoint.as_bytes()], |row| {
            codec::state(row, 0)
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let settled = states.iter().any(|state| {
        matches!(
            state,
            DeliveryState::Delivered | DeliveryState::Pending | DeliveryState::Retrying
        )
    });
    let failed = states.contains(&DeliveryState::Exhausted);
    Ok(!settled && (failed || task.kind == TaskKind::Replay))
}

/// Makes the task's delivery of a message, due now; false when it was made before.
fn make(connection: &Connection, task: &TaskRow, wanted: &Wanted, message: MessageId) -> Fallible<bool> {
    let id = DeliveryId::derive_again(message, task.endpoint, task.id.as_bytes());
    let inserted = connection
        .prepare_cached(
            "INSERT OR IGNORE INTO deliveries (message, endpoint, id, state, attempts, origin)
             VALUES (?1, ?2, ?3, ?4, 0, ?5)",
        )?
        .execute(params![
            message.as_bytes(),
            task.endpoint.as_bytes(),
            id.as_bytes(),
            codec::state_number(DeliveryState::Pending),
            codec::origin_number(Trigger::Manual)
        ])?;
    if inserted == 0 {
        return Ok(false);
    }
    // Behind all that waits: within the task the order is that of the messages.
    let seq: i64 = if wanted.ordered {
        connection
            .prepare_cached("UPDATE progress SET last_seq = last_seq + 1 RETURNING last_seq")?
            .query_row([], |row| row.get(0))?
    } else {
        0
    };
    connection
        .prepare_cached(
            "INSERT INTO waiting (delivery, endpoint, app, message, origin, due_at, reason, run, attempts, leased, seq)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, 0, 0, ?8)",
        )?
        .execute(params![
            id.as_bytes(),
            task.endpoint.as_bytes(),
            task.app.as_bytes(),
            message.as_bytes(),
            codec::origin_number(Trigger::Manual),
            UnixMillis::now().0,
            codec::reason_number(DeferReason::Manual),
            seq
        ])?;
    Ok(true)
}

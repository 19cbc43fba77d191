//! Background tasks: deliver again what failed (recover) or never came (replay). One chunk a call, from the cursor;
//! several ledgers share them by the lock on the task's row.

mod find;
pub(super) mod rows;

use std::collections::HashMap;

use postrider_model::{DeferReason, DeliveryId, DeliveryState, EndpointId, MessageId, Trigger};
use postrider_store::fold::{COUNTER_BUCKET_MS, StateCounts, WaitingPut};
use postrider_store::{TaskRow, TaskState};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::PostgresStore;
use crate::error::Work;
use crate::record::write::{self, column};
use crate::waiting::look;
use rows::columns;

/// Moves the task that has rested longest on by a chunk; returns the deliveries made. A chunk that finds nothing to
/// deliver is followed by the next one, so that 0 means that no task has work left for now.
pub(super) async fn advance(store: &PostgresStore, limit: i64) -> Work<u64> {
    const CHUNKS: u32 = 20;
    for _ in 0..CHUNKS {
        match chunk(store, limit).await? {
            Some(0) => {}
            Some(made) => return Ok(made),
            None => return Ok(0),
        }
    }
    Ok(0)
}

async fn chunk(store: &PostgresStore, limit: i64) -> Work<Option<u64>> {
    let mut tx = store.write.begin().await?;
    // A kind that only a newer process knows is left to it.
    let row = sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM tasks WHERE state = 0 AND kind IN (1, 2) ORDER BY updated_at LIMIT 1 FOR UPDATE SKIP LOCKED"
    ))
    .fetch_optional(&mut *tx)
    .await?;
    let Some(task) = row.as_ref().map(rows::decode).transpose()? else {
        return Ok(None);
    };
    match go_on(&mut tx, &task, limit).await {
        Ok(made) => {
            tx.commit().await?;
            Ok(Some(made))
        }
        Err(error) => {
            // The next one's turn: one that fails must not stand before the others. Where this fails too, the store is away.
            let _ = tx.rollback().await;
            if let Ok(mut connection) = store.write.acquire().await {
                let _ = rest(&mut connection, &task, task.state, task.cursor).await;
            }
            Err(error)
        }
    }
}

/// The task's next chunk; returns the deliveries made.
async fn go_on(tx: &mut PgConnection, task: &TaskRow, limit: i64) -> Work<u64> {
    let Some(wanted) = wanted(tx, task).await? else {
        rest(tx, task, TaskState::Failed, task.cursor).await?;
        return Ok(0);
    };
    let found = find::chunk(tx, task, &wanted, limit).await?;
    let made = deliver_again(tx, task, wanted.ordered, &found.messages).await?;
    let state = if found.is_last {
        TaskState::Finished
    } else {
        TaskState::Running
    };
    rest(tx, task, state, found.cursor.or(task.cursor)).await?;
    Ok(made)
}

/// What a task needs to know of its endpoint. Nothing sealed: what cannot be opened stops deliveries, and no task.
struct Wanted {
    event_types: Vec<String>,
    channels: Vec<String>,
    ordered: bool,
}

/// None when the endpoint is disabled or gone.
async fn wanted(connection: &mut PgConnection, task: &TaskRow) -> Work<Option<Wanted>> {
    let row = sqlx::query(
        "SELECT event_types, channels, ordered FROM endpoints \
         WHERE id = $1 AND app = $2 AND NOT disabled AND deleted_at IS NULL",
    )
    .bind(task.endpoint.as_uuid())
    .bind(task.app.as_uuid())
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Wanted {
        event_types: row.try_get("event_types")?,
        channels: row.try_get("channels")?,
        ordered: row.try_get("ordered")?,
    }))
}

async fn rest(
    connection: &mut PgConnection,
    task: &TaskRow,
    state: TaskState,
    cursor: Option<MessageId>,
) -> Work<()> {
    sqlx::query("UPDATE tasks SET state = $2, cursor = $3, updated_at = now_ms() WHERE id = $1")
        .bind(task.id.as_uuid())
        .bind(i16::from(state as u8))
        .bind(cursor.map(|cursor| cursor.as_uuid()))
        .execute(connection)
        .await?;
    Ok(())
}

/// Makes a manual delivery of each message, due at once; one that this task made before is passed over.
async fn deliver_again(
    connection: &mut PgConnection,
    task: &TaskRow,
    ordered: bool,
    messages: &[MessageId],
) -> Work<u64> {
    if messages.is_empty() {
        return Ok(0);
    }
    let by_delivery: HashMap<Uuid, MessageId> = messages
        .iter()
        .map(|message| {
            let id = DeliveryId::derive_again(*message, task.endpoint, task.id.as_bytes());
            (id.as_uuid(), *message)
        })
        .collect();
    let pairs: Vec<(Uuid, MessageId)> = by_delivery.iter().map(|(id, message)| (*id, *message)).collect();
    let mut made: Vec<Uuid> = sqlx::query_scalar(
        "INSERT INTO deliveries (id, message, endpoint, app, attempts, state, trigger) \
         SELECT u.id, u.message, $3, $4, 0, $5, $6 FROM unnest($1::uuid[], $2::uuid[]) AS u(id, message) \
         ON CONFLICT DO NOTHING RETURNING id",
    )
    .bind(column(&pairs, |pair| pair.0))
    .bind(column(&pairs, |pair| pair.1.as_uuid()))
    .bind(task.endpoint.as_uuid())
    .bind(task.app.as_uuid())
    .bind(i16::from(DeliveryState::Pending as u8))
    .bind(i16::from(Trigger::Manual as u8))
    .fetch_all(&mut *connection)
    .await?;
    // Places in the sequence go by message: within a millisecond the ids of deliveries have another order.
    made.sort_unstable_by_key(|id| by_delivery.get(id));
    let count = i64::try_from(made.len()).unwrap_or(i64::MAX);
    let mut seq = if ordered {
        let last: i64 = sqlx::query_scalar("UPDATE sequence SET last_seq = last_seq + $1 RETURNING last_seq")
            .bind(count)
            .fetch_one(&mut *connection)
            .await?;
        Some(last - count)
    } else {
        None
    };
    let now = look::now(connection).await?;
    let mut counters: HashMap<(EndpointId, i64), StateCounts> = HashMap::new();
    let mut puts = Vec::with_capacity(made.len());
    for id in &made {
        let Some(message) = by_delivery.get(id) else {
            continue;
        };
        let bucket = message.created_at().0.div_euclid(COUNTER_BUCKET_MS) * COUNTER_BUCKET_MS;
        counters
            .entry((task.endpoint, bucket))
            .or_default()
            .add(DeliveryState::Pending, 1);
        puts.push(WaitingPut {
            delivery: DeliveryId::from_uuid(*id),
            endpoint: task.endpoint,
            app: task.app,
            message: *message,
            trigger: Trigger::Manual,
            due_at: now,
            reason: DeferReason::Manual,
            run: 0,
            attempts: 0,
            leased: false,
            leased_at: None,
            seq: seq.as_mut().map_or(0, |seq| {
                *seq += 1;
                *seq
            }),
        });
    }
    write::put_waiting(connection, &column(&puts, |put| put)).await?;
    // A paused endpoint is found to be so when it is claimed.
    sqlx::query(
        "INSERT INTO backlog (endpoint, app, next_due) VALUES ($1, $2, $3) \
         ON CONFLICT (endpoint) DO UPDATE SET \
         next_due = least(backlog.next_due, greatest(EXCLUDED.next_due, backlog.not_before))",
    )
    .bind(task.endpoint.as_uuid())
    .bind(task.app.as_uuid())
    .bind(now.0)
    .execute(&mut *connection)
    .await?;
    write::counters(connection, &counters).await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

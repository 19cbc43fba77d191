//! Cancelling what waits, on record: the waiting row goes, the delivery says why, the counters move.

use std::collections::HashMap;

use postrider_model::{CancelReason, DeliveryId, DeliveryState, EndpointId, MessageId, UnixMillis};
use postrider_store::fold::{COUNTER_BUCKET_MS, StateCounts};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::error::Work;
use crate::log::deliveries::to_state;
use crate::record::load::by_day;
use crate::record::write;
use crate::row::floor;
use crate::schema::{DAY_MS, partition};

/// A waiting row to cancel; the caller holds its lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doomed {
    pub(crate) delivery: DeliveryId,
    pub(crate) endpoint: EndpointId,
    pub(crate) message: MessageId,
}

impl Doomed {
    /// From a row with `delivery`, `endpoint` and `message`.
    pub(crate) fn decode(row: &PgRow) -> Work<Self> {
        Ok(Self {
            delivery: DeliveryId::from_uuid(row.try_get("delivery")?),
            endpoint: EndpointId::from_uuid(row.try_get("endpoint")?),
            message: MessageId::from_uuid(row.try_get("message")?),
        })
    }
}

/// Cancels; returns how many deliveries had not ended.
pub(crate) async fn apply(
    connection: &mut PgConnection,
    doomed: &[Doomed],
    reason: CancelReason,
) -> Work<u64> {
    if doomed.is_empty() {
        return Ok(0);
    }
    let ids: Vec<Uuid> = write::column(doomed, |row| row.delivery.as_uuid());
    sqlx::query("DELETE FROM waiting WHERE delivery = ANY($1)")
        .bind(&ids)
        .execute(&mut *connection)
        .await?;
    let by_id: HashMap<Uuid, &Doomed> = doomed.iter().map(|row| (row.delivery.as_uuid(), row)).collect();
    let mut counters: HashMap<(EndpointId, i64), StateCounts> = HashMap::new();
    let mut cancelled = 0;
    for (day, ids) in by_day(&ids) {
        // Through the parent: retention may have dropped the day.
        let rows = sqlx::query(
            "SELECT id, state FROM deliveries WHERE id = ANY($1) AND id >= $2 AND id < $3 \
             AND state IN (1, 3) ORDER BY id FOR UPDATE",
        )
        .bind(ids)
        .bind(floor(UnixMillis(day * DAY_MS)))
        .bind(floor(UnixMillis((day + 1) * DAY_MS)))
        .fetch_all(&mut *connection)
        .await?;
        if !rows.is_empty() {
            let found = rows
                .iter()
                .map(|row| row.try_get("id"))
                .collect::<Result<Vec<Uuid>, _>>()?;
            sqlx::query(AssertSqlSafe(format!(
                "UPDATE {} SET state = $2, cancelled = $3 WHERE id = ANY($1)",
                partition("deliveries", day)
            )))
            .bind(found)
            .bind(i16::from(DeliveryState::Cancelled as u8))
            .bind(i16::from(reason as u8))
            .execute(&mut *connection)
            .await?;
        }
        for row in rows {
            let id: Uuid = row.try_get("id")?;
            let Some(doomed) = by_id.get(&id) else { continue };
            let at = doomed.message.created_at().0;
            let counts = counters
                .entry((
                    doomed.endpoint,
                    at.div_euclid(COUNTER_BUCKET_MS) * COUNTER_BUCKET_MS,
                ))
                .or_default();
            counts.add(to_state(row.try_get("state")?)?, -1);
            counts.add(DeliveryState::Cancelled, 1);
            cancelled += 1;
        }
    }
    write::counters(connection, &counters).await?;
    wake_ordered(connection, doomed).await?;
    Ok(cancelled)
}

/// Has `ordered` endpoints looked at, whose head may be gone: the next one may go now. Held ones stay as they are.
async fn wake_ordered(connection: &mut PgConnection, doomed: &[Doomed]) -> Work<()> {
    sqlx::query(
        "WITH held AS (SELECT b.endpoint FROM backlog b JOIN endpoints e ON e.id = b.endpoint \
           WHERE b.endpoint = ANY($1) AND e.ordered AND b.next_due < $2 ORDER BY b.endpoint FOR UPDATE OF b) \
         UPDATE backlog b SET next_due = least(b.next_due, greatest(now_ms(), b.not_before)) FROM held \
         WHERE b.endpoint = held.endpoint",
    )
    .bind(write::column(doomed, |row| row.endpoint.as_uuid()))
    .bind(UnixMillis::NEVER.0)
    .execute(connection)
    .await?;
    Ok(())
}

//! Claiming endpoints that are due.

use std::collections::HashMap;
use std::time::Duration;

use postrider_model::{AppId, EndpointId, UnixMillis};
use postrider_store::{DueEndpoint, LAG_REST};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::look::{self, Look};
use crate::PostgresStore;
use crate::error::Work;
use crate::row::{millis, to_u32};

pub(super) async fn claim(
    store: &PostgresStore,
    limit: u32,
    count_max: u32,
    hold: Duration,
    lag: Duration,
) -> Work<Vec<DueEndpoint>> {
    let mut tx = store.write.begin().await?;
    let now = look::now(&mut tx).await?;
    let rows = sqlx::query(
        "WITH due AS (SELECT endpoint, next_due FROM backlog WHERE next_due <= $1 ORDER BY next_due LIMIT $2 \
         FOR UPDATE SKIP LOCKED) \
         UPDATE backlog b SET next_due = $1 + $3, not_before = $1 + $3, is_full = false \
         FROM due WHERE b.endpoint = due.endpoint RETURNING b.endpoint, due.next_due AS look",
    )
    .bind(now.0)
    .bind(i64::from(limit))
    .bind(millis(hold))
    .fetch_all(&mut *tx)
    .await?;
    let looks = rows
        .iter()
        .map(|row| Ok((row.try_get("endpoint")?, UnixMillis(row.try_get("look")?))))
        .collect::<Work<HashMap<Uuid, UnixMillis>>>()?;
    let claimed: Vec<Uuid> = looks.keys().copied().collect();
    if claimed.is_empty() {
        return Ok(Vec::new());
    }
    hold_back(&mut tx, &claimed).await?;
    let rows = count(&mut tx, &claimed, count_max, now, now.minus(lag)).await?;
    let mut due = rows.iter().map(decode).collect::<Work<Vec<_>>>()?;
    for endpoint in &mut due {
        if let Some(look) = looks.get(&endpoint.endpoint.as_uuid()) {
            endpoint.since = endpoint.since.max(*look);
        }
    }
    // Nothing to lease: woken for a row that is gone, or ordered with a run out, or all that is due waits for the journal,
    // which is no reason to look again and again.
    let idle: Vec<Look> = due
        .iter()
        .filter(|endpoint| endpoint.due == 0)
        .map(|endpoint| Look {
            endpoint: endpoint.endpoint.as_uuid(),
            earliest: if lag.is_zero() || endpoint.out == 0 {
                now
            } else {
                now.plus(LAG_REST)
            },
            not_before: now,
            is_full: false,
        })
        .collect();
    look::set(&mut tx, &idle).await?;
    tx.commit().await?;
    due.retain(|endpoint| endpoint.due > 0);
    due.sort_unstable_by_key(|endpoint| endpoint.since);
    Ok(due)
}

/// Held endpoints among the claimed are not offered until they are resumed; disabled and deleted ones are swept.
async fn hold_back(connection: &mut PgConnection, claimed: &[Uuid]) -> Work<()> {
    sqlx::query(
        "UPDATE backlog b SET next_due = $2, \
         sweep = b.sweep OR e.id IS NULL OR e.disabled OR e.deleted_at IS NOT NULL \
         FROM unnest($1::uuid[]) AS u(endpoint) LEFT JOIN endpoints e ON e.id = u.endpoint \
         WHERE b.endpoint = u.endpoint AND (e.id IS NULL OR e.disabled OR e.paused OR e.deleted_at IS NOT NULL)",
    )
    .bind(claimed)
    .bind(UnixMillis::NEVER.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Counts what is due and what is out, each up to `count_max`, for claimed endpoints that are not held. What was not handed
/// out (run 0, an attempt that takes long) is out for an `ordered` endpoint only. A lease has expired
/// that ended at `expired` or before. Of an `ordered` endpoint rows outside the sequence (from before it was `ordered`) are
/// due each by itself, those of the sequence as long as all before them are.
async fn count(
    connection: &mut PgConnection,
    claimed: &[Uuid],
    count_max: u32,
    now: UnixMillis,
    expired: UnixMillis,
) -> Work<Vec<PgRow>> {
    let rows = sqlx::query(
        "SELECT e.id, e.app, e.throttle_rate, e.ordered, leases.out, coalesce(due.since, $3) AS since, \
         CASE WHEN e.ordered AND leases.out > 0 THEN 0 ELSE due.due END AS due \
         FROM unnest($1::uuid[]) AS u(endpoint) JOIN endpoints e ON e.id = u.endpoint \
         CROSS JOIN LATERAL (SELECT count(*) AS out FROM (SELECT 1 FROM waiting w WHERE w.endpoint = u.endpoint \
           AND w.leased AND w.due_at > $4 AND (e.ordered OR w.run > 0) LIMIT $2) o) leases \
         CROSS JOIN LATERAL (SELECT count(*) AS due, min(d.due_at) AS since FROM ( \
           (SELECT w.due_at FROM waiting w WHERE w.endpoint = u.endpoint AND w.seq = 0 \
             AND w.due_at <= $3 AND (NOT w.leased OR w.due_at <= $4) ORDER BY w.due_at LIMIT $2) \
           UNION ALL (SELECT w.due_at FROM waiting w WHERE NOT e.ordered AND w.endpoint = u.endpoint AND w.seq > 0 \
             AND w.due_at <= $3 AND (NOT w.leased OR w.due_at <= $4) ORDER BY w.seq, w.due_at LIMIT $2) \
           UNION ALL (SELECT p.due_at FROM (SELECT h.due_at, bool_and(h.due_at <= $3) \
             OVER (ORDER BY h.seq, h.due_at, h.delivery) AS ready FROM (SELECT w.due_at, w.seq, w.delivery \
             FROM waiting w WHERE e.ordered AND w.endpoint = u.endpoint AND w.seq > 0 \
             ORDER BY w.seq, w.due_at, w.delivery LIMIT $2) h) p WHERE p.ready) LIMIT $2) d) due \
         WHERE NOT e.disabled AND NOT e.paused AND e.deleted_at IS NULL",
    )
    .bind(claimed)
    .bind(i64::from(count_max.max(1)))
    .bind(now.0)
    .bind(expired.0)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

fn decode(row: &PgRow) -> Work<DueEndpoint> {
    Ok(DueEndpoint {
        endpoint: EndpointId::from_uuid(row.try_get("id")?),
        app: AppId::from_uuid(row.try_get("app")?),
        throttle_rate: row
            .try_get::<Option<i64>, _>("throttle_rate")?
            .map(to_u32)
            .transpose()?,
        ordered: row.try_get("ordered")?,
        due: to_u32(row.try_get("due")?)?,
        out: to_u32(row.try_get("out")?)?,
        since: UnixMillis(row.try_get("since")?),
    })
}

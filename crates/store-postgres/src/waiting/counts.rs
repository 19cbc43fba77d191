//! What waits, in numbers.

use std::time::Duration;

use postrider_model::{AppId, EndpointId, UnixMillis};
use postrider_store::{EndpointBacklog, ReasonCount};
use sqlx::Row;

use super::look::first_due;
use crate::PostgresStore;
use crate::error::{Fail, Work};
use crate::log::deliveries::to_reason;

/// Rows that are counted one by one; more are estimated from a sample.
const EXACT_MAX: i64 = 100_000;

pub(super) async fn counts(store: &PostgresStore) -> Work<(Vec<ReasonCount>, Duration)> {
    let rows = sqlx::query(
        "SELECT reason, count(*) AS count FROM (SELECT reason FROM waiting LIMIT $1) w GROUP BY reason",
    )
    .bind(EXACT_MAX + 1)
    .fetch_all(&store.read)
    .await?;
    let mut found = rows
        .iter()
        .map(|row| Ok((row.try_get("reason")?, row.try_get("count")?)))
        .collect::<Result<Vec<(i16, i64)>, Fail>>()?;
    if found.iter().map(|(_, count)| count).sum::<i64>() > EXACT_MAX {
        found = estimate(store).await?;
    }
    found.sort_unstable();
    let mut counts = Vec::with_capacity(found.len());
    for (reason, count) in found {
        counts.push(ReasonCount {
            reason: to_reason(reason)?,
            count: u64::try_from(count).unwrap_or(0),
        });
    }
    Ok((counts, ready_age(store).await?))
}

/// Counts a sample of about [`EXACT_MAX`] rows and scales it up to the planner's estimate of all.
async fn estimate(store: &PostgresStore) -> Work<Vec<(i16, i64)>> {
    let rows = sqlx::query(
        "WITH size AS (SELECT greatest(reltuples, $1)::float8 AS rows FROM pg_class \
         WHERE oid = 'waiting'::regclass), \
         sampled AS (SELECT reason, count(*)::float8 AS count FROM waiting \
         TABLESAMPLE SYSTEM ((SELECT 100 * $1::float8 / rows FROM size)) GROUP BY reason) \
         SELECT reason, (count * (SELECT rows FROM size) / (SELECT sum(count) FROM sampled))::bigint AS count \
         FROM sampled",
    )
    .bind(f64::from(100_000))
    .fetch_all(&store.read)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("reason")?, row.try_get("count")?)))
        .collect()
}

/// Counts by endpoint in a sample like that of [`estimate`], which is the whole table while that is small.
pub(super) async fn busiest(store: &PostgresStore, limit: u32) -> Work<Vec<EndpointBacklog>> {
    let rows = sqlx::query(concat!(
        "WITH size AS (SELECT greatest(reltuples, $1)::float8 AS rows FROM pg_class \
         WHERE oid = 'waiting'::regclass), \
         sampled AS (SELECT endpoint, app, count(*)::float8 AS count FROM waiting \
         TABLESAMPLE SYSTEM ((SELECT 100 * $1::float8 / rows FROM size)) GROUP BY endpoint, app \
         ORDER BY count DESC, endpoint LIMIT $2) \
         SELECT s.endpoint, s.app, (s.count * (SELECT rows FROM size) / $1::float8)::bigint AS count, \
         coalesce(",
        first_due!("s.endpoint"),
        ", $3) AS due_at FROM sampled s ORDER BY s.count DESC, s.endpoint",
    ))
    .bind(f64::from(100_000))
    .bind(i64::from(limit))
    .bind(UnixMillis::NEVER.0)
    .fetch_all(&store.read)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(EndpointBacklog {
                endpoint: EndpointId::from_uuid(row.try_get("endpoint")?),
                app: AppId::from_uuid(row.try_get("app")?),
                count: row.try_get::<i64, _>("count")?.unsigned_abs(),
                due_at: UnixMillis(row.try_get("due_at")?),
            })
        })
        .collect()
}

/// How long the oldest ready delivery has been ready; its endpoint has a time to be looked at that has passed.
async fn ready_age(store: &PostgresStore) -> Work<Duration> {
    let row = sqlx::query(concat!(
        "WITH clock AS MATERIALIZED (SELECT now_ms() AS now) \
         SELECT clock.now, (SELECT min(greatest(head.due_at, b.next_due)) FROM \
         (SELECT b.endpoint, b.next_due, e.ordered FROM backlog b JOIN endpoints e ON e.id = b.endpoint \
         WHERE b.next_due <= clock.now AND NOT e.paused AND NOT e.disabled AND e.deleted_at IS NULL \
         ORDER BY b.next_due LIMIT 1000) b CROSS JOIN LATERAL (SELECT ",
        first_due!("b.endpoint"),
        " AS due_at) head WHERE head.due_at <= clock.now AND NOT (b.ordered AND EXISTS \
         (SELECT 1 FROM waiting l WHERE l.endpoint = b.endpoint AND l.leased AND l.due_at > clock.now))) AS ready_at \
         FROM clock",
    ))
    .fetch_one(&store.read)
    .await?;
    let now = UnixMillis(row.try_get("now")?);
    let ready_at: Option<i64> = row.try_get("ready_at")?;
    Ok(ready_at.map_or(Duration::ZERO, |ready_at| now.since(UnixMillis(ready_at))))
}

//! The scheduler's side. It locks backlog rows first, in a statement of its own: the statements after it then see
//! everything that woke the endpoint before, and whatever wakes it later waits for the lock and is not overwritten.

mod claim;
mod lease;
pub(crate) mod look;
mod suspects;

use std::time::Duration;

use async_trait::async_trait;
use postrider_model::{AppId, DeliveryId, EndpointId, UnixMillis};
use postrider_store::{
    DueEndpoint, EndpointBacklog, Grant, LeasedJob, PARK_DEATHS, ReasonCount, SUSPECT_DEATHS, SUSPECT_REST,
    StoreError, WaitingStore,
};
use sqlx::Row;
use uuid::Uuid;

use crate::PostgresStore;
use crate::error::{Fail, Work};
use crate::log::deliveries::to_reason;
use crate::record::write::column;
use crate::row::millis;

/// Rows that are counted one by one; more are estimated from a sample.
const EXACT_MAX: i64 = 100_000;

#[async_trait]
impl WaitingStore for PostgresStore {
    async fn claim_due(
        &self,
        limit: u32,
        count_max: u32,
        hold: Duration,
    ) -> Result<Vec<DueEndpoint>, StoreError> {
        self.writing(claim::claim(self, limit, count_max, hold)).await
    }

    async fn lease(&self, grants: &[Grant], lease: Duration) -> Result<Vec<LeasedJob>, StoreError> {
        if grants.is_empty() {
            return Ok(Vec::new());
        }
        self.writing(lease::lease(self, grants, lease)).await
    }

    async fn give_back(&self, leases: &[(DeliveryId, u32)], delay: Duration) -> Result<(), StoreError> {
        if leases.is_empty() {
            return Ok(());
        }
        self.writing(give_back(self, leases, delay)).await
    }

    async fn release_all_leases(&self, died: bool) -> Result<u64, StoreError> {
        self.writing(release_all(self, died)).await
    }

    async fn begin_trial(&self, delivery: DeliveryId, run: u32) -> Result<bool, StoreError> {
        self.writing(async {
            let done = sqlx::query(
                "INSERT INTO trials (delivery, run, at) VALUES ($1, $2, now_ms()) ON CONFLICT DO NOTHING",
            )
            .bind(delivery.as_uuid())
            .bind(i64::from(run))
            .execute(&self.write)
            .await?;
            Ok(done.rows_affected() == 0)
        })
        .await
    }

    async fn look_again(&self, endpoints: &[EndpointId]) -> Result<u64, StoreError> {
        if endpoints.is_empty() {
            return Ok(0);
        }
        self.writing(look_again(self, endpoints)).await
    }

    async fn next_due(&self) -> Result<Option<UnixMillis>, StoreError> {
        self.writing(async {
            let next: Option<i64> =
                sqlx::query_scalar("SELECT next_due FROM backlog ORDER BY next_due LIMIT 1")
                    .fetch_optional(&self.write)
                    .await?;
            Ok(next.map(UnixMillis).filter(|next| *next != UnixMillis::NEVER))
        })
        .await
    }

    async fn waiting_counts(&self) -> Result<(Vec<ReasonCount>, Duration), StoreError> {
        self.reading(counts(self)).await
    }

    async fn busiest(&self, limit: u32) -> Result<Vec<EndpointBacklog>, StoreError> {
        self.reading(busiest(self, limit)).await
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        self.writing(self.clock()).await
    }
}

async fn give_back(store: &PostgresStore, leases: &[(DeliveryId, u32)], delay: Duration) -> Work<()> {
    let mut tx = store.write.begin().await?;
    // An unpublished lease is not an expired one: it does not count against the row.
    let rows = sqlx::query(
        "WITH held AS (SELECT w.delivery FROM unnest($1::uuid[], $2::bigint[]) AS u(delivery, run) \
         JOIN waiting w ON w.delivery = u.delivery AND w.run = u.run WHERE w.leased ORDER BY w.delivery \
         FOR UPDATE OF w) \
         UPDATE waiting w SET due_at = now_ms() + $3, leased = false, lease_count = greatest(w.lease_count - 1, 0) \
         FROM held WHERE w.delivery = held.delivery RETURNING w.endpoint, w.due_at",
    )
    .bind(column(leases, |lease| lease.0.as_uuid()))
    .bind(column(leases, |lease| i64::from(lease.1)))
    .bind(millis(delay))
    .fetch_all(&mut *tx)
    .await?;
    let endpoints = rows
        .iter()
        .map(|row| row.try_get("endpoint"))
        .collect::<Result<Vec<Uuid>, _>>()?;
    wake_after(&mut tx, &endpoints, millis(delay)).await?;
    tx.commit().await?;
    Ok(())
}

async fn release_all(store: &PostgresStore, died: bool) -> Work<u64> {
    let mut tx = store.write.begin().await?;
    let endpoints: Vec<Uuid> = sqlx::query_scalar(
        "UPDATE waiting SET leased = false, deaths = deaths + $1, due_at = now_ms() + \
         CASE WHEN deaths + $1 >= $2 AND deaths + $1 < $3 THEN $4 ELSE 0 END WHERE leased RETURNING endpoint",
    )
    .bind(i32::from(died))
    .bind(i32::try_from(SUSPECT_DEATHS).unwrap_or(i32::MAX))
    .bind(i32::try_from(PARK_DEATHS).unwrap_or(i32::MAX))
    .bind(millis(SUSPECT_REST))
    .fetch_all(&mut *tx)
    .await?;
    wake_after(&mut tx, &endpoints, 0).await?;
    tx.commit().await?;
    Ok(u64::try_from(endpoints.len()).unwrap_or(u64::MAX))
}

/// Has these endpoints looked at after `delay_ms`, held ones excepted (a claim finds them held).
async fn wake_after(connection: &mut sqlx::PgConnection, endpoints: &[Uuid], delay_ms: i64) -> Work<()> {
    sqlx::query(
        "WITH held AS (SELECT endpoint FROM backlog WHERE endpoint = ANY($1) ORDER BY endpoint FOR UPDATE) \
         UPDATE backlog b SET next_due = least(b.next_due, now_ms() + $2) FROM held \
         WHERE b.endpoint = held.endpoint",
    )
    .bind(endpoints)
    .bind(delay_ms)
    .execute(connection)
    .await?;
    Ok(())
}

async fn look_again(store: &PostgresStore, endpoints: &[EndpointId]) -> Work<u64> {
    let done = sqlx::query(
        "WITH full_ones AS (SELECT endpoint FROM backlog WHERE is_full AND endpoint = ANY($1) AND next_due < $2 \
         ORDER BY endpoint FOR UPDATE) \
         UPDATE backlog b SET next_due = least(b.next_due, now_ms()), is_full = false FROM full_ones \
         WHERE b.endpoint = full_ones.endpoint",
    )
    .bind(column(endpoints, EndpointId::as_uuid))
    .bind(UnixMillis::NEVER.0)
    .execute(&store.write)
    .await?;
    Ok(done.rows_affected())
}

async fn counts(store: &PostgresStore) -> Work<(Vec<ReasonCount>, Duration)> {
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
async fn busiest(store: &PostgresStore, limit: u32) -> Work<Vec<EndpointBacklog>> {
    let rows = sqlx::query(
        "WITH size AS (SELECT greatest(reltuples, $1)::float8 AS rows FROM pg_class \
         WHERE oid = 'waiting'::regclass), \
         sampled AS (SELECT endpoint, app, count(*)::float8 AS count FROM waiting \
         TABLESAMPLE SYSTEM ((SELECT 100 * $1::float8 / rows FROM size)) GROUP BY endpoint, app \
         ORDER BY count DESC, endpoint LIMIT $2) \
         SELECT s.endpoint, s.app, (s.count * (SELECT rows FROM size) / $1::float8)::bigint AS count, \
         coalesce(head.due_at, $3) AS due_at FROM sampled s LEFT JOIN LATERAL (SELECT due_at FROM waiting w \
         WHERE w.endpoint = s.endpoint ORDER BY w.seq, w.due_at LIMIT 1) head ON true \
         ORDER BY s.count DESC, s.endpoint",
    )
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
    let row = sqlx::query(
        "WITH clock AS MATERIALIZED (SELECT now_ms() AS now) \
         SELECT clock.now, (SELECT min(greatest(head.due_at, b.next_due)) FROM \
         (SELECT b.endpoint, b.next_due, e.ordered FROM backlog b JOIN endpoints e ON e.id = b.endpoint \
         WHERE b.next_due <= clock.now AND NOT e.paused AND NOT e.disabled AND e.deleted_at IS NULL \
         ORDER BY b.next_due LIMIT 1000) b \
         CROSS JOIN LATERAL (SELECT due_at FROM waiting w WHERE w.endpoint = b.endpoint \
         ORDER BY w.seq, w.due_at LIMIT 1) head WHERE head.due_at <= clock.now AND NOT (b.ordered AND EXISTS \
         (SELECT 1 FROM waiting l WHERE l.endpoint = b.endpoint AND l.leased AND l.due_at > clock.now))) AS ready_at \
         FROM clock",
    )
    .fetch_one(&store.read)
    .await?;
    let now = UnixMillis(row.try_get("now")?);
    let ready_at: Option<i64> = row.try_get("ready_at")?;
    Ok(ready_at.map_or(Duration::ZERO, |ready_at| now.since(UnixMillis(ready_at))))
}

//! The scheduler's side. It locks backlog rows first, in a statement of its own: the statements after it then see
//! everything that woke the endpoint before, and whatever wakes it later waits for the lock and is not overwritten.

mod claim;
mod counts;
mod lease;
pub(crate) mod look;
mod suspects;

use std::time::Duration;

use async_trait::async_trait;
use postrider_model::{DeliveryId, EndpointId, UnixMillis};
use postrider_store::{
    DueEndpoint, EndpointBacklog, Grant, LeasedJob, PARK_DEATHS, ReasonCount, SUSPECT_DEATHS, SUSPECT_REST,
    StoreError, WaitingStore,
};
use sqlx::Row;
use uuid::Uuid;

use crate::PostgresStore;
use crate::error::Work;
use crate::record::write::column;
use crate::row::millis;

#[async_trait]
impl WaitingStore for PostgresStore {
    async fn claim_due(
        &self,
        limit: u32,
        count_max: u32,
        hold: Duration,
        lag: Duration,
    ) -> Result<Vec<DueEndpoint>, StoreError> {
        self.writing(claim::claim(self, limit, count_max, hold, lag))
            .await
    }

    async fn lease(
        &self,
        grants: &[Grant],
        lease: Duration,
        lag: Duration,
    ) -> Result<Vec<LeasedJob>, StoreError> {
        if grants.is_empty() {
            return Ok(Vec::new());
        }
        self.writing(lease::lease(self, grants, lease, lag)).await
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
        self.reading(counts::counts(self)).await
    }

    async fn busiest(&self, limit: u32) -> Result<Vec<EndpointBacklog>, StoreError> {
        self.reading(counts::busiest(self, limit)).await
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
         UPDATE backlog b SET next_due = least(b.next_due, now_ms()), not_before = 0, is_full = false \
         FROM full_ones WHERE b.endpoint = full_ones.endpoint",
    )
    .bind(column(endpoints, EndpointId::as_uuid))
    .bind(UnixMillis::NEVER.0)
    .execute(&store.write)
    .await?;
    Ok(done.rows_affected())
}

//! Cancelling what waits for disabled and deleted endpoints, and what waits for a message that never came.
//!
//! A change that disables or deletes flags the endpoint's backlog row, and so does whoever finds one disabled later;
//! the flag goes when nothing waits any more.

use std::time::Duration;

use postrider_model::{CancelReason, UnixMillis};
use postrider_store::{OrphanReport, SweepReport};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::cancel::{self, Doomed};
use crate::PostgresStore;
use crate::error::Work;
use crate::row::floor;
use crate::waiting::look;

/// Endpoints that one chunk looks at.
const ENDPOINTS: i64 = 100;

/// How long a row may wait for its message before it counts as an orphan.
const ORPHAN_AFTER_MS: i64 = 300_000;

pub(super) async fn cancel_disabled(store: &PostgresStore, limit: i64) -> Work<SweepReport> {
    let mut tx = store.write.begin().await?;
    let flagged: Vec<Uuid> = sqlx::query_scalar(
        "SELECT endpoint FROM backlog WHERE sweep ORDER BY endpoint LIMIT $1 FOR UPDATE SKIP LOCKED",
    )
    .bind(ENDPOINTS)
    .fetch_all(&mut *tx)
    .await?;
    if flagged.is_empty() {
        return Ok(SweepReport::default());
    }
    let rows = sqlx::query(
        "SELECT u.endpoint, e.id IS NULL OR e.deleted_at IS NOT NULL AS deleted, coalesce(e.disabled, false) \
         AS disabled, coalesce(a.deleted_at IS NOT NULL, false) AS app_deleted \
         FROM unnest($1::uuid[]) AS u(endpoint) LEFT JOIN endpoints e ON e.id = u.endpoint \
         LEFT JOIN applications a ON a.id = e.app",
    )
    .bind(&flagged)
    .fetch_all(&mut *tx)
    .await?;
    let mut report = SweepReport::default();
    let mut left = limit;
    for row in &rows {
        if left <= 0 {
            break;
        }
        let endpoint: Uuid = row.try_get("endpoint")?;
        let Some(reason) = reason(row)? else {
            report.passed += unflag(&mut tx, endpoint, true).await?;
            continue;
        };
        let doomed = take(&mut tx, endpoint, left).await?;
        if doomed.is_empty() && row.try_get("deleted")? {
            report.passed += forget(&mut tx, endpoint).await?;
        } else if doomed.is_empty() {
            report.passed += unflag(&mut tx, endpoint, false).await?;
        }
        left = left.saturating_sub(i64::try_from(doomed.len()).unwrap_or(i64::MAX));
        report.cancelled += cancel::apply(&mut tx, &doomed, reason).await?;
    }
    tx.commit().await?;
    Ok(report)
}

/// Why an endpoint's deliveries are cancelled; `None` when it was enabled again.
fn reason(row: &PgRow) -> Work<Option<CancelReason>> {
    if row.try_get("app_deleted")? {
        return Ok(Some(CancelReason::ApplicationDeleted));
    }
    if row.try_get("deleted")? {
        return Ok(Some(CancelReason::EndpointDeleted));
    }
    let disabled: bool = row.try_get("disabled")?;
    Ok(disabled.then_some(CancelReason::EndpointDisabled))
}

async fn take(connection: &mut PgConnection, endpoint: Uuid, limit: i64) -> Work<Vec<Doomed>> {
    let rows = sqlx::query(
        "SELECT delivery, endpoint, message FROM waiting WHERE endpoint = $1 ORDER BY seq, due_at LIMIT $2 \
         FOR UPDATE SKIP LOCKED",
    )
    .bind(endpoint)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(Doomed::decode).collect()
}

/// Takes the flag off, unless rows are left that others hold right now; returns 1 if it did.
async fn unflag(connection: &mut PgConnection, endpoint: Uuid, enabled: bool) -> Work<u64> {
    let done = sqlx::query(
        "UPDATE backlog SET sweep = false, next_due = CASE WHEN $2 THEN now_ms() ELSE next_due END \
         WHERE endpoint = $1 AND ($2 OR NOT EXISTS (SELECT 1 FROM waiting w WHERE w.endpoint = $1))",
    )
    .bind(endpoint)
    .bind(enabled)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Removes a deleted endpoint's row, unless rows are left that others hold right now. It is locked: who brings something late
/// waits, and makes it anew. Returns 1 if it did.
async fn forget(connection: &mut PgConnection, endpoint: Uuid) -> Work<u64> {
    let done = sqlx::query(
        "DELETE FROM backlog WHERE endpoint = $1 AND NOT EXISTS (SELECT 1 FROM waiting w WHERE w.endpoint = $1)",
    )
    .bind(endpoint)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Due rows whose message is missing, among the 1,000 endpoints that are next and the first 100 rows of each: what
/// cannot be leased stays at the head, so they come in the end.
pub(super) async fn orphans(
    store: &PostgresStore,
    cancel_after: Option<Duration>,
    limit: i64,
) -> Work<OrphanReport> {
    let mut tx = store.write.begin().await?;
    let now = look::now(&mut tx).await?;
    let rows = sqlx::query(
        "SELECT w.delivery, w.endpoint, w.message FROM \
         (SELECT endpoint FROM backlog WHERE next_due < $1 ORDER BY next_due LIMIT 1000) b \
         CROSS JOIN LATERAL (SELECT delivery, endpoint, message, due_at FROM waiting w WHERE w.endpoint = b.endpoint \
         ORDER BY w.seq, w.due_at LIMIT 100) w \
         WHERE w.due_at <= $2 AND w.message < $3 AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.id = w.message) \
         ORDER BY w.message, w.delivery LIMIT $4",
    )
    .bind(UnixMillis::NEVER.0)
    .bind(now.0)
    .bind(floor(UnixMillis(now.0 - ORPHAN_AFTER_MS)))
    .bind(limit)
    .fetch_all(&mut *tx)
    .await?;
    let rows = rows.iter().map(Doomed::decode).collect::<Work<Vec<_>>>()?;
    let (given_up, waiting): (Vec<Doomed>, Vec<Doomed>) = rows
        .into_iter()
        .partition(|row| cancel_after.is_some_and(|after| row.message.created_at() < now.minus(after)));
    let given_up = still_orphans(&mut tx, &given_up).await?;
    let cancelled = cancel::apply(&mut tx, &given_up, CancelReason::MessageMissing).await?;
    tx.commit().await?;
    Ok(OrphanReport {
        waiting: u64::try_from(waiting.len()).unwrap_or(u64::MAX),
        cancelled,
    })
}

/// Locks rows; those that the recorder holds, or whose message has just come, stay.
async fn still_orphans(connection: &mut PgConnection, rows: &[Doomed]) -> Work<Vec<Doomed>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = rows.iter().map(|row| row.delivery.as_uuid()).collect();
    let locked: Vec<Uuid> = sqlx::query_scalar(
        "SELECT delivery FROM waiting WHERE delivery = ANY($1) ORDER BY delivery FOR UPDATE SKIP LOCKED",
    )
    .bind(&ids)
    .fetch_all(&mut *connection)
    .await?;
    let rows = sqlx::query(
        "SELECT w.delivery, w.endpoint, w.message FROM waiting w WHERE w.delivery = ANY($1) \
         AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.id = w.message)",
    )
    .bind(&locked)
    .fetch_all(connection)
    .await?;
    rows.iter().map(Doomed::decode).collect()
}

//! Retention. Whole days go as partitions, payloads before the rest; what waits for them is cancelled first, on
//! record. Only bodies whose message names its own retention and what goes by its time alone ([`by_time`]) are removed row by
//! row, in chunks.
//!
//! One ledger at a time works on it; the others pass. A partition is detached without keeping readers and writers
//! out, then dropped; what an interrupted run left half done is finished by the next.

use std::time::Duration;

use postrider_model::{CancelReason, UnixMillis};
use postrider_store::RetentionReport;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use super::by_time;
use super::cancel::{self, Doomed};
use crate::PostgresStore;
use crate::error::Work;
use crate::row::{floor, same_millisecond};
use crate::schema::{DAY_MS, RETAIN_LOCK};
use crate::waiting::look;

/// Partitions dropped in one chunk: one day's tables.
const PARTITIONS: usize = 4;

/// Transactions of one chunk that cancel.
const CANCEL_PAGES: usize = 10;

pub(super) async fn retain(
    store: &PostgresStore,
    payloads: Duration,
    log: Duration,
    limit: i64,
) -> Work<RetentionReport> {
    store.prepare_days().await?;
    // A connection of its own: the lock is the session's, and ends with it at the latest.
    let mut connection = store.write.acquire().await?.detach();
    let report = alone(store, &mut connection, payloads, log, limit).await;
    let closed = sqlx::Connection::close(connection).await;
    let report = report?;
    closed?;
    Ok(report)
}

/// A chunk, unless another process is at one.
async fn alone(
    store: &PostgresStore,
    connection: &mut PgConnection,
    payloads: Duration,
    log: Duration,
    limit: i64,
) -> Work<RetentionReport> {
    let mine: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
        .bind(RETAIN_LOCK)
        .fetch_one(&mut *connection)
        .await?;
    if !mine {
        return Ok(RetentionReport::default());
    }
    let report = chunk(store, connection, payloads, log, limit).await?;
    // The server ends a session some time after its connection: the next chunk would find the lock taken.
    sqlx::query("SELECT pg_advisory_unlock($1)")
        .bind(RETAIN_LOCK)
        .execute(connection)
        .await?;
    Ok(report)
}

async fn chunk(
    store: &PostgresStore,
    connection: &mut PgConnection,
    payloads: Duration,
    log: Duration,
    limit: i64,
) -> Work<RetentionReport> {
    let now = look::now(connection).await?;
    let log_day = now.minus(log).0.div_euclid(DAY_MS);
    // The record may not outlive its payloads' partitions the other way round.
    let payload_day = now.minus(payloads).0.div_euclid(DAY_MS).max(log_day);
    let mut report = RetentionReport::default();
    drop_leftovers(store, connection).await?;

    kept_bodies(store, now, log_day, limit, &mut report).await?;
    let (cancelled, is_last) = cancel_before(store, payload_day, log_day, limit).await?;
    report.cancelled += cancelled;
    let log_before = log_day.saturating_mul(DAY_MS);
    report.rows += by_time::remove(connection, now, log_before, limit).await?;
    // The partitions go when nothing waits for them any more.
    if !is_last {
        return Ok(report);
    }
    let mut left = PARTITIONS;
    // Bodies last: a late fact of an old day makes that day's table again, and such ones must not keep the others.
    for (table, before) in [
        ("deliveries", log_day),
        ("attempts", log_day),
        ("messages", log_day),
        ("bodies", payload_day),
    ] {
        for name in expired(connection, table, before, left).await? {
            let held_rows = u64::from(drop_partition(connection, table, &name).await?);
            store.days.forget();
            left -= 1;
            match table {
                "bodies" => report.payloads += held_rows,
                "messages" => report.messages += held_rows,
                _ => report.rows += held_rows,
            }
        }
    }
    // None is left, so nothing on record is of before.
    if left > 0 {
        report.rows += by_time::remove_deleted(connection, log_before, limit).await?;
    }
    Ok(report)
}

/// Cancels what waits for payloads of expired days. Deliveries' ids carry their message's time, so these are the
/// first of the primary key. Bodies that are kept longer are passed over until their record goes. Returns how many, and whether
/// no more wait.
async fn cancel_before(
    store: &PostgresStore,
    payload_day: i64,
    log_day: i64,
    limit: i64,
) -> Work<(u64, bool)> {
    let mut cancelled = 0;
    let mut from = Uuid::nil();
    for _ in 0..CANCEL_PAGES {
        let mut tx = store.write.begin().await?;
        // Not SKIP LOCKED: the partitions go next, so every row must have been seen.
        let rows = sqlx::query(
            "SELECT delivery, endpoint, message FROM waiting w WHERE delivery >= $4 AND delivery < $1 \
             AND (delivery < $2 OR NOT EXISTS (SELECT 1 FROM bodies_kept k WHERE k.id = w.message)) \
             ORDER BY delivery LIMIT $3 FOR UPDATE",
        )
        .bind(floor(UnixMillis(payload_day.saturating_mul(DAY_MS))))
        .bind(floor(UnixMillis(log_day.saturating_mul(DAY_MS))))
        .bind(limit)
        .bind(from)
        .fetch_all(&mut *tx)
        .await?;
        let doomed = rows.iter().map(Doomed::decode).collect::<Work<Vec<_>>>()?;
        cancelled += cancel::apply(&mut tx, &doomed, CancelReason::PayloadExpired).await?;
        tx.commit().await?;
        let full = i64::try_from(doomed.len()).is_ok_and(|found| found >= limit);
        match doomed.last() {
            Some(last) if full => from = last.delivery.as_uuid(),
            _ => return Ok((cancelled, true)),
        }
    }
    Ok((cancelled, false))
}

/// One chunk of the bodies that have a retention of their own.
async fn kept_bodies(
    store: &PostgresStore,
    now: UnixMillis,
    log_day: i64,
    limit: i64,
    report: &mut RetentionReport,
) -> Work<()> {
    let mut tx = store.write.begin().await?;
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM ((SELECT id FROM bodies_kept WHERE expires_at <= $1 ORDER BY expires_at LIMIT $3) \
         UNION (SELECT id FROM bodies_kept WHERE id < $2 ORDER BY id LIMIT $3)) k",
    )
    .bind(now.0)
    .bind(floor(UnixMillis(log_day.saturating_mul(DAY_MS))))
    .bind(limit)
    .fetch_all(&mut *tx)
    .await?;
    if ids.is_empty() {
        return Ok(());
    }
    let bounds: Vec<(Uuid, Uuid)> = ids.iter().map(|id| same_millisecond(*id)).collect();
    let rows: Vec<PgRow> = sqlx::query(
        "SELECT w.delivery, w.endpoint, w.message FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) \
         AS u(id, low, high) JOIN waiting w ON w.delivery >= u.low AND w.delivery < u.high AND w.message = u.id \
         ORDER BY w.delivery FOR UPDATE OF w",
    )
    .bind(&ids)
    .bind(bounds.iter().map(|bounds| bounds.0).collect::<Vec<_>>())
    .bind(bounds.iter().map(|bounds| bounds.1).collect::<Vec<_>>())
    .fetch_all(&mut *tx)
    .await?;
    let doomed = rows.iter().map(Doomed::decode).collect::<Work<Vec<_>>>()?;
    report.cancelled += cancel::apply(&mut tx, &doomed, CancelReason::PayloadExpired).await?;
    let gone = sqlx::query("DELETE FROM bodies_kept WHERE id = ANY($1)")
        .bind(&ids)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    report.payloads += gone.rows_affected();
    Ok(())
}

/// The oldest partitions of days before `day`, at most `limit`.
async fn expired(connection: &mut PgConnection, table: &str, day: i64, limit: usize) -> Work<Vec<String>> {
    let names = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
         WHERE i.inhparent = $1::regclass AND to_date(right(c.relname, 8), 'YYYYMMDD') - date '1970-01-01' < $2 \
         ORDER BY c.relname LIMIT $3",
    )
    .bind(table)
    .bind(day)
    .bind(i64::try_from(limit).unwrap_or(0))
    .fetch_all(connection)
    .await?;
    Ok(names)
}

/// Detaches and drops a partition; returns whether it held rows.
async fn drop_partition(connection: &mut PgConnection, table: &str, name: &str) -> Work<bool> {
    let held_rows: bool = sqlx::query_scalar(AssertSqlSafe(format!("SELECT EXISTS (SELECT 1 FROM {name})")))
        .fetch_one(&mut *connection)
        .await?;
    sqlx::raw_sql(AssertSqlSafe(format!(
        "ALTER TABLE {table} DETACH PARTITION {name} CONCURRENTLY"
    )))
    .execute(&mut *connection)
    .await?;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP TABLE {name}")))
        .execute(connection)
        .await?;
    tracing::info!(partition = name, "retention dropped a partition");
    Ok(held_rows)
}

/// Finishes what an interrupted run began: partitions half detached, and detached ones that were not dropped.
async fn drop_leftovers(store: &PostgresStore, connection: &mut PgConnection) -> Work<()> {
    let rows = sqlx::query(
        "SELECT c.relname::text AS name, p.relname::text AS parent FROM pg_class c \
         LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class p ON p.oid = i.inhparent \
         WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace \
         AND c.relname ~ '^(messages|bodies|deliveries|attempts)_[0-9]{8}$' \
         AND (i.inhrelid IS NULL OR i.inhdetachpending)",
    )
    .fetch_all(&mut *connection)
    .await?;
    for row in rows {
        let name: String = row.try_get("name")?;
        if let Some(parent) = row.try_get::<Option<String>, _>("parent")? {
            sqlx::raw_sql(AssertSqlSafe(format!(
                "ALTER TABLE {parent} DETACH PARTITION {name} FINALIZE"
            )))
            .execute(&mut *connection)
            .await?;
        }
        sqlx::raw_sql(AssertSqlSafe(format!("DROP TABLE IF EXISTS {name}")))
            .execute(&mut *connection)
            .await?;
        store.days.forget();
    }
    Ok(())
}

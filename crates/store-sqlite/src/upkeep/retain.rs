//! Retention: payloads first, then records, then what only time removes. Each call does one chunk.

use std::time::Duration;

use postrider_model::{CancelReason, MessageId, UnixMillis};
use postrider_store::RetentionReport;
use rusqlite::{Connection, params};

use crate::cancel;
use crate::claims::ended::EndedClaims;
use crate::codec;
use crate::error::Fallible;

/// How long the mark of a trial is kept.
const TRIALS_KEPT: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn retain(
    connection: &Connection,
    payloads: Duration,
    log: Duration,
    limit: u32,
    ended_claims: &EndedClaims,
) -> Fallible<RetentionReport> {
    let now = UnixMillis::now();
    let mut report = RetentionReport::default();
    let mut expired = own_retention(connection, now, limit)?;
    let walk = walk(connection, now, payloads, limit)?;
    report.more = walk.is_full;
    expired.extend(walk.expired);
    for message in expired {
        // On record first: what waits for the payload is cancelled, not left to be found out.
        report.cancelled += cancel::cancel_message(connection, message, CancelReason::PayloadExpired)?;
        report.payloads += u64::from(cancel::drop_body(connection, message)?);
    }
    if let Some(mark) = walk.mark {
        connection
            .prepare_cached("UPDATE progress SET body_mark = ?1")?
            .execute([mark])?;
    }
    remove_records(connection, now.minus(log), limit, &mut report)?;
    let ended =
        ended_claims.step(connection, now, limit)? + remove_by_time(connection, now, now.minus(log), limit)?;
    report.rows = u64::try_from(ended).unwrap_or(u64::MAX);
    Ok(report)
}

/// Messages whose own retention has ended.
fn own_retention(connection: &Connection, now: UnixMillis, limit: u32) -> Fallible<Vec<MessageId>> {
    let messages = connection
        .prepare_cached(
            "SELECT message FROM bodies WHERE expires_at IS NOT NULL AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2",
        )?
        .query_map(params![now.0, limit], |row| codec::id(row, 0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(messages)
}

/// What a walk over bodies found.
struct Walk {
    /// Messages without a retention of their own whose time is over.
    expired: Vec<MessageId>,
    /// The number up to which bodies are done.
    mark: Option<i64>,
    /// It went as far as it may: more may have expired behind it.
    is_full: bool,
}

/// Bodies are numbered in the order in which they came, so the walk goes on from where it stopped, and stops at the first
/// one that is young.
///
/// A clock that was wrong made some that look younger than they are, which would hold up all that came after them. What
/// is from the future or stands before an old one gets an end of its own, and is passed over.
fn walk(connection: &Connection, now: UnixMillis, payloads: Duration, limit: u32) -> Fallible<Walk> {
    let cutoff = now.minus(payloads);
    let found = connection
        .prepare_cached(
            "SELECT n, message, expires_at IS NOT NULL FROM bodies
             WHERE n > (SELECT body_mark FROM progress) ORDER BY n LIMIT ?1",
        )?
        .query_map([limit], |row| Ok((row.get(0)?, codec::id(row, 1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<Vec<(i64, MessageId, bool)>>>()?;
    let is_old = |message: &MessageId| message.created_at() < cutoff;
    let behind_old = found
        .iter()
        .rposition(|(_, message, has_own)| !has_own && is_old(message))
        .unwrap_or(0);
    let (mut expired, mut mark, mut walked) = (Vec::new(), None, 0);
    for (place, (n, message, has_own)) in found.into_iter().enumerate() {
        let made_at = message.created_at();
        if !has_own && is_old(&message) {
            expired.push(message);
        } else if !has_own && (place < behind_old || made_at > now) {
            connection
                .prepare_cached("UPDATE bodies SET expires_at = ?2 WHERE n = ?1")?
                .execute(params![n, made_at.min(now).plus(payloads).0])?;
        } else if !has_own {
            break;
        }
        mark = Some(n);
        walked += 1;
    }
    Ok(Walk {
        expired,
        mark,
        is_full: walked == limit,
    })
}

/// Removes messages made before `cutoff` with all that hangs on them, and what outlived its message.
fn remove_records(
    connection: &Connection,
    cutoff: UnixMillis,
    limit: u32,
    report: &mut RetentionReport,
) -> Fallible<()> {
    let floor = MessageId::floor(cutoff);
    for (table, counts) in [("messages", true), ("deliveries", false), ("attempts", false)] {
        let column = if counts { "id" } else { "message" };
        let messages = connection
            .prepare_cached(&format!(
                "SELECT DISTINCT {column} FROM {table} WHERE {column} < ?1 ORDER BY {column} LIMIT ?2"
            ))?
            .query_map(params![floor.as_bytes(), limit], |row| codec::id(row, 0))?
            .collect::<rusqlite::Result<Vec<MessageId>>>()?;
        for message in messages {
            report.cancelled += cancel::cancel_message(connection, message, CancelReason::PayloadExpired)?;
            cancel::drop_body(connection, message)?;
            for sql in [
                "DELETE FROM attempts WHERE message = ?1",
                "DELETE FROM deliveries WHERE message = ?1",
                "DELETE FROM messages WHERE id = ?1",
            ] {
                connection.prepare_cached(sql)?.execute([message.as_bytes()])?;
            }
            report.messages += u64::from(counts);
        }
    }
    Ok(())
}

/// Old marks of trials; counters and finished tasks from before `cutoff`. Returns how many.
fn remove_by_time(
    connection: &Connection,
    now: UnixMillis,
    cutoff: UnixMillis,
    limit: u32,
) -> Fallible<usize> {
    let mut gone = connection
        .prepare_cached(
            "DELETE FROM trials WHERE (delivery, run) IN (
                SELECT delivery, run FROM trials WHERE at < ?1 ORDER BY at LIMIT ?2)",
        )?
        .execute(params![now.minus(TRIALS_KEPT).0, limit])?;
    gone += connection
        .prepare_cached(
            "DELETE FROM counters WHERE (endpoint, hour) IN (
                SELECT endpoint, hour FROM counters WHERE hour < ?1 ORDER BY hour LIMIT ?2)",
        )?
        .execute(params![
            cutoff.0.saturating_sub(postrider_store::fold::COUNTER_BUCKET_MS),
            limit
        ])?;
    gone += connection
        .prepare_cached(
            "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE state <> 0 AND updated_at < ?1 LIMIT ?2)",
        )?
        .execute(params![cutoff.0, limit])?;
    Ok(gone)
}

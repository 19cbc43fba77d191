//! Retention: payloads first, then records, then what only time removes. Each call does one chunk, which touches a bounded
//! number of rows: a message with more goes in portions.

use std::time::Duration;

use postrider_model::{CancelReason, DeliveryId, EndpointId, MessageId, UnixMillis};
use postrider_store::RetentionReport;
use rusqlite::{Connection, OptionalExtension, params};

use crate::cancel::{self, Waits};
use crate::claims::ended::EndedClaims;
use crate::codec;
use crate::error::Fallible;
use crate::upkeep::by_time;

/// So many bytes of a payload count as one row.
const BODY_BYTES_PER_ROW: usize = 16 * 1024;

/// Rows that a step may still touch. All else waits for the writer, so a step is bounded by rows, not by messages, each of
/// which may have thousands.
struct Room(usize);

impl Room {
    fn of(limit: u32) -> Self {
        Self(usize::try_from(limit).unwrap_or(usize::MAX).max(1))
    }

    fn take(&mut self, rows: usize) {
        self.0 = self.0.saturating_sub(rows);
    }

    fn is_used(&self) -> bool {
        self.0 == 0
    }

    /// As the limit of a statement.
    fn limit(&self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

pub(crate) fn retain(
    connection: &Connection,
    payloads: Duration,
    log: Duration,
    limit: u32,
    ended_claims: &EndedClaims,
) -> Fallible<RetentionReport> {
    let now = UnixMillis::now();
    let mut report = RetentionReport::default();
    let mut room = Room::of(limit);
    own_retention(connection, now, &mut room, &mut report)?;
    default_retention(connection, now, payloads, &mut room, &mut report)?;
    let mut records_room = Room::of(limit);
    remove_records(connection, now.minus(log), &mut records_room, &mut report)?;
    report.more = room.is_used() || records_room.is_used();
    let mut rows = ended_claims.step(connection, now, limit)?;
    rows += by_time::remove(connection, now, now.minus(log), limit)?;
    // No record is left from before.
    if !records_room.is_used() {
        rows += by_time::remove_deleted(connection, now.minus(log), limit)?;
    }
    report.rows = u64::try_from(rows).unwrap_or(u64::MAX);
    Ok(report)
}

/// Payloads whose own retention has ended.
fn own_retention(
    connection: &Connection,
    now: UnixMillis,
    room: &mut Room,
    report: &mut RetentionReport,
) -> Fallible<()> {
    let messages = connection
        .prepare_cached(
            "SELECT message FROM bodies WHERE expires_at IS NOT NULL AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2",
        )?
        .query_map(params![now.0, room.limit()], |row| codec::id(row, 0))?
        .collect::<rusqlite::Result<Vec<MessageId>>>()?;
    for message in messages {
        if room.is_used() || !expire(connection, message, room, report)? {
            break;
        }
    }
    Ok(())
}

/// Removes payloads without a retention of their own, made longer than `payloads` ago. They are numbered in the order in
/// which they came, so the walk goes on from where it stopped, and stops at the first one that is young.
///
/// A clock that was wrong made some that look younger than they are, which would hold up all that came after them. What
/// is from the future or stands before an old one gets an end of its own, and is passed over.
fn default_retention(
    connection: &Connection,
    now: UnixMillis,
    payloads: Duration,
    room: &mut Room,
    report: &mut RetentionReport,
) -> Fallible<()> {
    let cutoff = now.minus(payloads);
    let found = connection
        .prepare_cached(
            "SELECT n, message, expires_at IS NOT NULL FROM bodies
             WHERE n > (SELECT body_mark FROM progress) ORDER BY n LIMIT ?1",
        )?
        .query_map([room.limit()], |row| {
            Ok((row.get(0)?, codec::id(row, 1)?, row.get(2)?))
        })?
        .collect::<rusqlite::Result<Vec<(i64, MessageId, bool)>>>()?;
    let is_old = |message: &MessageId| message.created_at() < cutoff;
    let behind_old = found
        .iter()
        .rposition(|(_, message, has_own)| !has_own && is_old(message))
        .unwrap_or(0);
    let mut mark = None;
    for (place, (n, message, has_own)) in found.into_iter().enumerate() {
        if room.is_used() {
            break;
        }
        let made_at = message.created_at();
        if has_own {
            room.take(1);
        } else if is_old(&message) {
            if !expire(connection, message, room, report)? {
                break;
            }
        } else if place < behind_old || made_at > now {
            connection
                .prepare_cached("UPDATE bodies SET expires_at = ?2 WHERE n = ?1")?
                .execute(params![n, made_at.min(now).plus(payloads).0])?;
            room.take(1);
        } else {
            break;
        }
        mark = Some(n);
    }
    if let Some(mark) = mark {
        connection
            .prepare_cached("UPDATE progress SET body_mark = ?1")?
            .execute([mark])?;
    }
    Ok(())
}

/// Removes a payload; false when what waits for it left no room for that. On record first: what waits is cancelled, not
/// left to be found out.
fn expire(
    connection: &Connection,
    message: MessageId,
    room: &mut Room,
    report: &mut RetentionReport,
) -> Fallible<bool> {
    let mut find = connection.prepare_cached(&format!(
        "SELECT {}, w.delivery IS NOT NULL FROM deliveries d LEFT JOIN waiting w ON w.delivery = d.id
         WHERE d.message = ?1",
        Waits::COLUMNS
    ))?;
    let mut found = find.query([message.as_bytes()])?;
    let (mut waits, mut looked_at, mut is_all) = (Vec::new(), 1, false);
    while waits.len() < room.0 && !is_all {
        match found.next()? {
            Some(row) => {
                looked_at += 1;
                if row.get(4)? {
                    waits.push(Waits::read(row)?);
                }
            }
            None => is_all = true,
        }
    }
    room.take(looked_at);
    report.cancelled += cancel::cancel(connection, &waits, CancelReason::PayloadExpired)?;
    if is_all {
        report.payloads += u64::from(drop_body(connection, message, room)?);
    }
    Ok(is_all)
}

/// Removes a payload; true when there was one. All of its pages are read for that, so it counts as more rows than one.
fn drop_body(connection: &Connection, message: MessageId, room: &mut Room) -> Fallible<bool> {
    let dropped = cancel::drop_body(connection, message)?;
    room.take(dropped.unwrap_or_default() / BODY_BYTES_PER_ROW);
    Ok(dropped.is_some())
}

/// Removes messages made before `cutoff` with all that hangs on them, and what outlived its message.
fn remove_records(
    connection: &Connection,
    cutoff: UnixMillis,
    room: &mut Room,
    report: &mut RetentionReport,
) -> Fallible<()> {
    let floor = MessageId::floor(cutoff);
    for (table, column) in [
        ("messages", "id"),
        ("deliveries", "message"),
        ("attempts", "message"),
    ] {
        let mut first = connection.prepare_cached(&format!(
            "SELECT {column} FROM {table} WHERE {column} < ?1 ORDER BY {column} LIMIT 1"
        ))?;
        while !room.is_used() {
            let message = first
                .query_row([floor.as_bytes()], |row| codec::id(row, 0))
                .optional()?;
            let Some(message) = message else { break };
            remove_message(connection, message, room, report)?;
        }
    }
    Ok(())
}

/// Removes as much of a message as there is room for, its own row last.
fn remove_message(
    connection: &Connection,
    message: MessageId,
    room: &mut Room,
    report: &mut RetentionReport,
) -> Fallible<()> {
    let deliveries = connection
        .prepare_cached(&format!(
            "SELECT {}, w.delivery IS NOT NULL, d.endpoint, d.id FROM deliveries d
             LEFT JOIN waiting w ON w.delivery = d.id WHERE d.message = ?1 LIMIT ?2",
            Waits::COLUMNS
        ))?
        .query_map(params![message.as_bytes(), room.limit()], |row| {
            let waits = row.get::<_, bool>(4)?.then(|| Waits::read(row)).transpose()?;
            Ok((codec::id(row, 5)?, codec::id(row, 6)?, waits))
        })?
        .collect::<rusqlite::Result<Vec<(EndpointId, DeliveryId, Option<Waits>)>>>()?;
    room.take(deliveries.len());
    let waits: Vec<Waits> = deliveries.iter().filter_map(|(_, _, waits)| *waits).collect();
    report.cancelled += cancel::cancel(connection, &waits, CancelReason::PayloadExpired)?;
    let mut remove = connection
        .prepare_cached("DELETE FROM deliveries WHERE message = ?1 AND endpoint = ?2 AND id = ?3")?;
    for (endpoint, delivery, _) in &deliveries {
        remove.execute([message.as_bytes(), endpoint.as_bytes(), delivery.as_bytes()])?;
    }
    let attempts = connection
        .prepare_cached(
            "DELETE FROM attempts WHERE message = ?1
                AND id IN (SELECT id FROM attempts WHERE message = ?1 LIMIT ?2)",
        )?
        .execute(params![message.as_bytes(), room.limit()])?;
    room.take(attempts);
    if !room.is_used() {
        drop_body(connection, message, room)?;
        let removed = connection
            .prepare_cached("DELETE FROM messages WHERE id = ?1")?
            .execute([message.as_bytes()])?;
        report.messages += u64::try_from(removed).unwrap_or(u64::MAX);
        room.take(1);
    }
    Ok(())
}

//! Deliveries, attempts and waiting rows, as the fold found them.

use std::collections::HashMap;

use postrider_model::{DeferReason, DeliveryId, UnixMillis};
use postrider_store::RecordReport;
use postrider_store::fold::{AttemptPut, Changes, DeliveryPut, Known, WaitingPut};
use rusqlite::{Connection, params};

use crate::cancel::Totals;
use crate::error::Fallible;
use crate::{codec, waiting};

pub(super) fn put_deliveries(connection: &Connection, changes: &Changes, known: &Known) -> Fallible<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO deliveries (message, endpoint, id, state, attempts, cancelled, origin)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let mut update = connection.prepare_cached(
        "UPDATE deliveries SET state = ?4, attempts = ?5, cancelled = ?6
         WHERE message = ?1 AND endpoint = ?2 AND id = ?3",
    )?;
    for put in changes.deliveries.values() {
        let DeliveryPut {
            id,
            message,
            endpoint,
            state,
            attempts,
            cancelled,
            ..
        } = put;
        let keys = (message.as_bytes(), endpoint.as_bytes(), id.as_bytes());
        let cancelled = cancelled.map(codec::cancel_number);
        let number = codec::state_number(*state);
        if put.is_new {
            let origin = codec::origin_number(put.trigger);
            insert.execute(params![
                keys.0, keys.1, keys.2, number, attempts, cancelled, origin
            ])?;
            continue;
        }
        let unchanged = known
            .deliveries
            .get(id)
            .is_some_and(|known| known.state == *state && known.attempts == *attempts);
        if !unchanged {
            // A cancelled delivery keeps its reason: the fold does not know it.
            if state.is_terminal()
                && known
                    .deliveries
                    .get(id)
                    .is_some_and(|known| known.state == *state)
            {
                connection
                    .prepare_cached(
                        "UPDATE deliveries SET attempts = ?4 WHERE message = ?1 AND endpoint = ?2 AND id = ?3",
                    )?
                    .execute(params![keys.0, keys.1, keys.2, attempts])?;
            } else {
                update.execute(params![keys.0, keys.1, keys.2, number, attempts, cancelled])?;
            }
        }
    }
    Ok(())
}

pub(super) fn insert_attempts(
    connection: &Connection,
    attempts: &[AttemptPut],
    report: &mut RecordReport,
) -> Fallible<()> {
    let mut insert = connection.prepare_cached(
        "INSERT OR IGNORE INTO attempts (message, id, endpoint, app, delivery, origin, started_at, duration_ms, class,
            status, response, url)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?;
    for put in attempts {
        let attempt = &put.attempt;
        report.attempts += insert.execute(params![
            put.message.as_bytes(),
            attempt.id.as_bytes(),
            put.endpoint.as_bytes(),
            put.app.as_bytes(),
            put.delivery.as_bytes(),
            codec::origin_number(put.trigger),
            attempt.started_at.0,
            i64::try_from(attempt.duration.as_millis()).unwrap_or(i64::MAX),
            attempt.class as u8,
            attempt.status,
            &attempt.response[..],
            attempt.url,
        ])?;
    }
    Ok(())
}

/// Writes and removes waiting rows, moves their totals, wakes their endpoints.
pub(super) fn put_waiting(
    connection: &Connection,
    changes: &Changes,
    known: &Known,
    before: &HashMap<DeliveryId, DeferReason>,
    now: UnixMillis,
) -> Fallible<()> {
    let mut remove = connection.prepare_cached("DELETE FROM waiting WHERE delivery = ?1")?;
    let mut totals = Totals::default();
    let mut wake = changes.wake.clone();
    for (id, row) in &changes.waiting {
        if let Some(reason) = before.get(id) {
            totals.add(*reason, -1);
        }
        if let Some(row) = row {
            put_waiting_row(connection, row)?;
            totals.add(row.reason, 1);
            continue;
        }
        remove.execute([id.as_bytes()])?;
        let had = known.deliveries.get(id).and_then(|known| known.waiting);
        let Some((put, had)) = changes.deliveries.get(id).zip(had) else {
            continue;
        };
        let endpoint = known.endpoints.get(&put.endpoint);
        if had.seq > 0 || endpoint.is_some_and(|known| known.ordered) {
            // The head of an `ordered` endpoint went: the next one may go now.
            let held = endpoint.is_none_or(|known| known.held);
            let due = if held { UnixMillis::NEVER } else { now };
            let entry = wake.entry(put.endpoint).or_insert((put.app, due));
            entry.1 = entry.1.min(due);
        }
    }
    totals.write(connection)?;
    for (endpoint, (app, due)) in &wake {
        let doomed = known.endpoints.get(endpoint).is_none_or(|known| known.disabled);
        waiting::wake(connection, *endpoint, *app, *due, doomed)?;
    }
    Ok(())
}

fn put_waiting_row(connection: &Connection, row: &WaitingPut) -> Fallible<()> {
    connection
        .prepare_cached(
            "INSERT INTO waiting (delivery, endpoint, app, message, origin, due_at, reason, run, attempts, leased,
                leased_at, seq)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
             ON CONFLICT (delivery) DO UPDATE SET due_at = excluded.due_at, reason = excluded.reason,
                run = excluded.run, attempts = excluded.attempts, leased = excluded.leased,
                leased_at = excluded.leased_at, seq = excluded.seq, expired = 0, orphan = 0,
                deaths = CASE WHEN excluded.leased THEN deaths ELSE 0 END",
        )?
        .execute(params![
            row.delivery.as_bytes(),
            row.endpoint.as_bytes(),
            row.app.as_bytes(),
            row.message.as_bytes(),
            codec::origin_number(row.trigger),
            row.due_at.0,
            codec::reason_number(row.reason),
            row.run,
            row.attempts,
            row.leased,
            row.leased_at.map(|at| at.0),
            row.seq,
        ])?;
    Ok(())
}

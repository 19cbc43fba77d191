//! Cancelling what waits for disabled and deleted endpoints, and what waits for a message that never came.

use std::time::Duration;

use postrider_model::{CancelReason, EndpointId, UnixMillis};
use postrider_store::{OrphanReport, SweepReport};
use rusqlite::{Connection, OptionalExtension, params};

use crate::cancel::{self, Waits};
use crate::codec;
use crate::error::Fallible;

/// Doomed endpoints that one sweep visits.
const DOOMED_MAX: u32 = 64;
/// A waiting row whose message is missing for longer is an alarm.
const ORPHAN_AFTER: Duration = Duration::from_secs(300);
/// Rows marked as orphans that one sweep looks at.
const ORPHANS_MAX: u32 = 1_000;

/// Cancels what waits for disabled and deleted endpoints. A lease that is out does not save its row: the state is
/// final, and what the outcome adds is its attempt.
pub(super) fn sweep_doomed(connection: &Connection, limit: u32) -> Fallible<SweepReport> {
    let endpoints = connection
        .prepare_cached("SELECT endpoint FROM backlog WHERE doomed = 1 LIMIT ?1")?
        .query_map([DOOMED_MAX], |row| codec::id(row, 0))?
        .collect::<rusqlite::Result<Vec<EndpointId>>>()?;
    let mut report = SweepReport::default();
    let mut room = u64::from(limit);
    for endpoint in endpoints {
        let Some(why) = why_doomed(connection, endpoint)? else {
            // Enabled again: its rows live.
            crate::waiting::reconsider(connection, endpoint)?;
            report.passed += 1;
            continue;
        };
        let rows = connection
            .prepare_cached(&format!(
                "SELECT {} FROM waiting w WHERE w.endpoint = ?1 LIMIT ?2",
                Waits::COLUMNS
            ))?
            .query_map(
                params![endpoint.as_bytes(), i64::try_from(room).unwrap_or(i64::MAX)],
                Waits::read,
            )?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        report.cancelled += cancel::cancel(connection, &rows, why)?;
        let seen = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        if seen < room {
            connection
                .prepare_cached("DELETE FROM backlog WHERE endpoint = ?1")?
                .execute([endpoint.as_bytes()])?;
            report.passed += 1;
        }
        room = room.saturating_sub(seen);
        if room == 0 {
            break;
        }
    }
    Ok(report)
}

/// Why nothing may wait for an endpoint; `None` when it may.
fn why_doomed(connection: &Connection, endpoint: EndpointId) -> Fallible<Option<CancelReason>> {
    let found = connection
        .prepare_cached(
            "SELECT e.disabled, e.deleted_at IS NOT NULL, a.deleted_at IS NOT NULL
             FROM endpoints e LEFT JOIN applications a ON a.id = e.app WHERE e.id = ?1",
        )?
        .query_row([endpoint.as_bytes()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    Ok(match found {
        Some((_, _, true)) => Some(CancelReason::ApplicationDeleted),
        None | Some((_, true, _)) => Some(CancelReason::EndpointDeleted),
        Some((true, false, false)) => Some(CancelReason::EndpointDisabled),
        Some((false, false, false)) => None,
    })
}

/// Oldest first: a delivery's id begins with its message's time.
pub(super) fn orphans(
    connection: &Connection,
    cancel_after: Option<Duration>,
    limit: u32,
) -> Fallible<OrphanReport> {
    let now = UnixMillis::now();
    let alarm = now.minus(ORPHAN_AFTER);
    let rows = connection
        .prepare_cached(&format!(
            "SELECT {} FROM waiting w INDEXED BY waiting_orphans WHERE orphan = 1
                AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.id = w.message) ORDER BY delivery LIMIT ?1",
            Waits::COLUMNS
        ))?
        .query_map([limit.min(ORPHANS_MAX)], Waits::read)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let (given_up, waiting): (Vec<Waits>, Vec<Waits>) = rows
        .into_iter()
        .filter(|row| row.message.created_at() < alarm)
        .partition(|row| cancel_after.is_some_and(|after| row.message.created_at() < now.minus(after)));
    Ok(OrphanReport {
        waiting: u64::try_from(waiting.len()).unwrap_or(u64::MAX),
        cancelled: cancel::cancel(connection, &given_up, CancelReason::MessageMissing)?,
    })
}

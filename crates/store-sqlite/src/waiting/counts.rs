//! What waits, in numbers.

use std::time::Duration;

use postrider_model::{EndpointId, UnixMillis};
use postrider_store::{EndpointBacklog, ReasonCount};
use rusqlite::{Connection, params};

use super::look::earliest;
use crate::codec;
use crate::error::Fallible;

/// Endpoints that a look for the oldest ready delivery visits.
const READY_LOOK_MAX: i64 = 1_000;

pub(super) fn waiting_counts(connection: &Connection) -> Fallible<(Vec<ReasonCount>, Duration)> {
    let counts = connection
        .prepare_cached("SELECT reason, n FROM waiting_totals WHERE n > 0 ORDER BY reason")?
        .query_map([], |row| {
            Ok(ReasonCount {
                reason: codec::reason(row, 0)?,
                count: row.get::<_, i64>(1)?.unsigned_abs(),
            })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok((counts, ready_age(connection)?))
}

/// How long the oldest ready delivery has been ready; its endpoint has a time to be looked at that has passed.
fn ready_age(connection: &Connection) -> Fallible<Duration> {
    let now = UnixMillis::now();
    let mut looks = connection.prepare_cached(
        "SELECT b.endpoint, b.next_due, e.ordered FROM backlog b JOIN endpoints e ON e.id = b.endpoint
         WHERE b.next_due <= ?1 AND NOT e.paused AND NOT e.disabled AND e.deleted_at IS NULL
         ORDER BY b.next_due LIMIT ?2",
    )?;
    let looks = looks
        .query_map(params![now.0, READY_LOOK_MAX], |row| {
            Ok((codec::id(row, 0)?, codec::time(row, 1)?, row.get(2)?))
        })?
        .collect::<rusqlite::Result<Vec<(EndpointId, UnixMillis, bool)>>>()?;
    let mut oldest = now;
    for (endpoint, look, ordered) in looks {
        if look >= oldest {
            break;
        }
        if let Some(due) = earliest(connection, endpoint, ordered, now)? {
            oldest = oldest.min(due.max(look));
        }
    }
    Ok(now.since(oldest))
}

/// What has not ended, by the counters of the endpoints that have something to wait for.
pub(crate) const BUSIEST: &str = "SELECT busy.*,
        min(coalesce((SELECT min(due_at) FROM waiting w WHERE w.endpoint = busy.endpoint AND leased = 0), ?1),
            coalesce((SELECT min(due_at) FROM waiting w WHERE w.endpoint = busy.endpoint AND leased = 1), ?1))
     FROM (SELECT b.endpoint, b.app, (SELECT sum(pending + retrying) FROM counters c INDEXED BY counters_open
            WHERE c.endpoint = b.endpoint AND pending + retrying > 0) AS n
        FROM backlog b WHERE n > 0 ORDER BY n DESC, b.endpoint LIMIT ?2) busy
     ORDER BY busy.n DESC, busy.endpoint";

pub(super) fn busiest(connection: &Connection, limit: u32) -> Fallible<Vec<EndpointBacklog>> {
    let busiest = connection
        .prepare_cached(BUSIEST)?
        .query_map(params![UnixMillis::NEVER.0, limit], |row| {
            Ok(EndpointBacklog {
                endpoint: codec::id(row, 0)?,
                app: codec::id(row, 1)?,
                count: row.get::<_, i64>(2)?.unsigned_abs(),
                due_at: codec::time(row, 3)?,
            })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(busiest)
}

//! Claiming endpoints, and which of an endpoint's rows are due.

use std::time::Duration;

use postrider_model::{AppId, DeliveryId, EndpointId, UnixMillis};
use postrider_store::{DueEndpoint, LAG_REST};
use rusqlite::{Connection, params};

use super::look::{APART_LOOK_MAX, earliest, set_next, standing};
use crate::codec;
use crate::error::Fallible;

pub(super) fn claim_due(
    connection: &Connection,
    limit: u32,
    count_max: u32,
    hold: Duration,
    lag: Duration,
) -> Fallible<Vec<DueEndpoint>> {
    let clock = Clock::new(UnixMillis::now(), lag);
    let now = clock.now;
    let candidates = connection
        .prepare_cached(
            "SELECT endpoint, app, next_due FROM backlog WHERE next_due <= ?1 ORDER BY next_due LIMIT ?2",
        )?
        .query_map(params![now.0, limit], |row| {
            Ok((codec::id(row, 0)?, codec::id(row, 1)?, codec::time(row, 2)?))
        })?
        .collect::<rusqlite::Result<Vec<(EndpointId, AppId, UnixMillis)>>>()?;
    let mut due = Vec::with_capacity(candidates.len());
    for (endpoint, app, next_due) in candidates {
        let standing = standing(connection, endpoint)?;
        if standing.held {
            let never = Some(UnixMillis::NEVER);
            set_next(connection, endpoint, never, UnixMillis(0), standing.doomed)?;
            continue;
        }
        let looked = look(connection, endpoint, standing.ordered, clock, count_max)?;
        match looked.since {
            Some(since) => {
                let held_until = now.plus(hold);
                set_next(connection, endpoint, Some(held_until), held_until, false)?;
                due.push(DueEndpoint {
                    endpoint,
                    app,
                    throttle_rate: standing.throttle_rate,
                    ordered: standing.ordered,
                    due: looked.due,
                    out: looked.out,
                    since: since.max(next_due),
                });
            }
            None => {
                let next = earliest(connection, endpoint, standing.ordered, now)?;
                // What waits for the journal is no reason to look again and again.
                let rests = !lag.is_zero() && looked.out > 0;
                let next = next.map(|next| if rests { next.max(now.plus(LAG_REST)) } else { next });
                set_next(connection, endpoint, next, UnixMillis(0), false)?;
            }
        }
    }
    Ok(due)
}

/// The time, and up to when a lease must have ended to have expired.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) now: UnixMillis,
    expired: UnixMillis,
}

impl Clock {
    pub(super) fn new(now: UnixMillis, lag: Duration) -> Self {
        Self {
            now,
            expired: now.minus(lag),
        }
    }
}

/// What a look at an endpoint found.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) due: u32,
    pub(super) out: u32,
    /// Earliest due time among the due; `None` when nothing may go.
    pub(super) since: Option<UnixMillis>,
}

pub(super) fn look(
    connection: &Connection,
    endpoint: EndpointId,
    ordered: bool,
    clock: Clock,
    max: u32,
) -> Fallible<Look> {
    // What is sent as it came (run 0) is nobody's to hand out: only an `ordered` endpoint waits for it.
    let out: u32 = connection
        .prepare_cached(if ordered {
            "SELECT count(*) FROM (
                SELECT 1 FROM waiting WHERE endpoint = ?1 AND leased = 1 AND due_at > ?2 LIMIT ?3)"
        } else {
            "SELECT count(*) FROM (
                SELECT 1 FROM waiting WHERE endpoint = ?1 AND leased = 1 AND run > 0 AND due_at > ?2 LIMIT ?3)"
        })?
        .query_row(params![endpoint.as_bytes(), clock.expired.0, max], |row| {
            row.get(0)
        })?;
    if ordered {
        if out > 0 {
            return Ok(Look {
                out,
                ..Look::default()
            });
        }
        let run = ordered_run(connection, endpoint, clock.now, max)?;
        return Ok(Look {
            due: u32::try_from(run.len()).unwrap_or(max),
            out,
            since: run.iter().map(|(_, due)| *due).min(),
        });
    }
    let (due, since) = connection
        .prepare_cached(
            "SELECT count(*), min(due_at) FROM (
                SELECT due_at FROM (SELECT due_at FROM waiting
                    WHERE endpoint = ?1 AND leased = 0 AND due_at <= ?2 ORDER BY due_at LIMIT ?3)
                UNION ALL SELECT due_at FROM (SELECT due_at FROM waiting
                    WHERE endpoint = ?1 AND leased = 1 AND due_at <= ?4 ORDER BY due_at LIMIT ?3))",
        )?
        .query_row(
            params![endpoint.as_bytes(), clock.now.0, max, clock.expired.0],
            |row| Ok((row.get::<_, u32>(0)?, codec::time_opt(row, 1)?)),
        )?;
    Ok(Look {
        due: due.min(max),
        out,
        since,
    })
}

fn read_due(row: &rusqlite::Row<'_>) -> rusqlite::Result<(DeliveryId, UnixMillis)> {
    Ok((codec::id(row, 0)?, codec::time(row, 1)?))
}

/// What an `ordered` endpoint of which no lease is out may send: rows without a sequence that are due (a lease that
/// expired is), then consecutive rows from the head as long as they are due.
pub(super) fn ordered_run(
    connection: &Connection,
    endpoint: EndpointId,
    now: UnixMillis,
    max: u32,
) -> Fallible<Vec<(DeliveryId, UnixMillis)>> {
    let mut run = connection
        .prepare_cached(
            "SELECT delivery, due_at FROM (
                SELECT * FROM (SELECT delivery, due_at, seq FROM waiting
                    WHERE endpoint = ?1 AND leased = 0 AND due_at <= ?2 ORDER BY due_at LIMIT ?4)
                UNION ALL SELECT * FROM (SELECT delivery, due_at, seq FROM waiting
                    WHERE endpoint = ?1 AND leased = 1 AND due_at <= ?2 ORDER BY due_at LIMIT ?4))
             WHERE seq = 0 ORDER BY due_at, delivery LIMIT ?3",
        )?
        .query_map(params![endpoint.as_bytes(), now.0, max, APART_LOOK_MAX], read_due)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let room = usize::try_from(max).unwrap_or(usize::MAX) - run.len();
    let mut sequence = connection.prepare_cached(
        "SELECT delivery, due_at FROM waiting WHERE endpoint = ?1 AND seq > 0 ORDER BY seq LIMIT ?2",
    )?;
    let rows = sequence.query_map(
        params![endpoint.as_bytes(), i64::try_from(room).unwrap_or(i64::MAX)],
        read_due,
    )?;
    for row in rows {
        let row = row?;
        if row.1 > now {
            break;
        }
        run.push(row);
    }
    Ok(run)
}

pub(super) fn due_rows(
    connection: &Connection,
    endpoint: EndpointId,
    clock: Clock,
    count: u32,
) -> Fallible<Vec<(DeliveryId, UnixMillis)>> {
    let rows = connection
        .prepare_cached(
            "SELECT delivery, due_at FROM (
                SELECT * FROM (SELECT delivery, due_at FROM waiting
                    WHERE endpoint = ?1 AND leased = 0 AND due_at <= ?2 ORDER BY due_at LIMIT ?3)
                UNION ALL SELECT * FROM (SELECT delivery, due_at FROM waiting
                    WHERE endpoint = ?1 AND leased = 1 AND due_at <= ?4 ORDER BY due_at LIMIT ?3))
             ORDER BY due_at, delivery LIMIT ?3",
        )?
        .query_map(
            params![endpoint.as_bytes(), clock.now.0, count, clock.expired.0],
            read_due,
        )?
        .collect::<rusqlite::Result<_>>()?;
    Ok(rows)
}

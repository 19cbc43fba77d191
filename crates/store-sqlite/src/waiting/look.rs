//! When an endpoint is next looked at.

use postrider_model::{AppId, EndpointId, UnixMillis};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::Fallible;

/// In an `ordered` endpoint, rows without a sequence (made by hand) are looked for among so many that are due first.
/// Beyond, they take their turn as the others go.
pub(super) const APART_LOOK_MAX: u32 = 1_000;

/// What a claim needs to know of an endpoint.
pub(crate) struct Standing {
    pub(crate) throttle_rate: Option<u32>,
    pub(crate) ordered: bool,
    /// Paused, disabled or deleted.
    pub(crate) held: bool,
    /// Disabled or deleted.
    pub(crate) doomed: bool,
}

/// How an endpoint stands; one that is not in the store counts as deleted.
pub(crate) fn standing(connection: &Connection, endpoint: EndpointId) -> Fallible<Standing> {
    let found = connection
        .prepare_cached(
            "SELECT throttle_rate, ordered, paused, disabled OR deleted_at IS NOT NULL FROM endpoints WHERE id = ?1",
        )?
        .query_row([endpoint.as_bytes()], |row| {
            let doomed: bool = row.get(3)?;
            Ok(Standing {
                throttle_rate: row.get(0)?,
                ordered: row.get(1)?,
                held: row.get::<_, bool>(2)? || doomed,
                doomed,
            })
        })
        .optional()?;
    Ok(found.unwrap_or(Standing {
        throttle_rate: None,
        ordered: false,
        held: true,
        doomed: true,
    }))
}

/// Makes sure that an endpoint is looked at when `due`, or as soon after as its pace allows.
pub(crate) fn wake(
    connection: &Connection,
    endpoint: EndpointId,
    app: AppId,
    due: UnixMillis,
    doomed: bool,
) -> Fallible<()> {
    connection
        .prepare_cached(
            "INSERT INTO backlog (endpoint, app, next_due, not_before, doomed) VALUES (?1, ?2, ?3, 0, ?4)
             ON CONFLICT (endpoint) DO UPDATE SET
                next_due = CASE WHEN excluded.next_due = ?5 THEN next_due
                                ELSE max(min(next_due, excluded.next_due), not_before) END,
                doomed = max(doomed, excluded.doomed)
             WHERE excluded.next_due < next_due OR excluded.doomed > doomed",
        )?
        .execute(params![
            endpoint.as_bytes(),
            app.as_bytes(),
            due.0,
            doomed,
            UnixMillis::NEVER.0
        ])?;
    Ok(())
}

/// Has an `ordered` endpoint looked at, whose head may be gone: the next one may go now. Held ones stay as they are.
pub(crate) fn wake_ordered(connection: &Connection, endpoint: EndpointId) -> Fallible<()> {
    connection
        .prepare_cached(
            "UPDATE backlog SET next_due = min(next_due, max(?2, not_before))
             WHERE endpoint = ?1 AND next_due < ?3
                AND EXISTS (SELECT 1 FROM endpoints e WHERE e.id = ?1 AND e.ordered)",
        )?
        .execute(params![
            endpoint.as_bytes(),
            UnixMillis::now().0,
            UnixMillis::NEVER.0
        ])?;
    Ok(())
}

/// When an endpoint's rows want to be looked at: `None` when there are none.
pub(crate) fn earliest(
    connection: &Connection,
    endpoint: EndpointId,
    ordered: bool,
    now: UnixMillis,
) -> Fallible<Option<UnixMillis>> {
    let first: Option<i64> = connection
        .prepare_cached(
            "SELECT min(due) FROM (
                SELECT min(due_at) AS due FROM waiting WHERE endpoint = ?1 AND leased = 0
                UNION ALL SELECT min(due_at) FROM waiting WHERE endpoint = ?1 AND leased = 1)",
        )?
        .query_row([endpoint.as_bytes()], |row| row.get(0))?;
    let Some(first) = first else { return Ok(None) };
    if !ordered {
        return Ok(Some(UnixMillis(first)));
    }
    // While a lease is out nothing else may go; its end, or an outcome, which wakes the endpoint, comes first.
    let out: Option<i64> = connection
        .prepare_cached("SELECT min(due_at) FROM waiting WHERE endpoint = ?1 AND leased = 1 AND due_at > ?2")?
        .query_row(params![endpoint.as_bytes(), now.0], |row| row.get(0))?;
    if let Some(out) = out {
        return Ok(Some(UnixMillis(out)));
    }
    // Otherwise the head decides for the sequence, and rows outside of it for themselves.
    let head: Option<i64> = connection
        .prepare_cached("SELECT due_at FROM waiting WHERE endpoint = ?1 AND seq > 0 ORDER BY seq LIMIT 1")?
        .query_row([endpoint.as_bytes()], |row| row.get(0))
        .optional()?;
    let apart = earliest_apart(connection, endpoint)?;
    Ok(head.into_iter().chain(apart).min().map(UnixMillis))
}

/// Sets an endpoint's backlog row right after its configuration changed.
pub(crate) fn reconsider(connection: &Connection, endpoint: EndpointId) -> Fallible<()> {
    let standing = standing(connection, endpoint)?;
    let next = if standing.held {
        Some(UnixMillis::NEVER)
    } else {
        earliest(connection, endpoint, standing.ordered, UnixMillis::now())?
    };
    set_next(connection, endpoint, next, UnixMillis(0), standing.doomed)
}

/// Writes when an endpoint is next looked at, as one that is not full; without rows the backlog row goes.
pub(super) fn set_next(
    connection: &Connection,
    endpoint: EndpointId,
    next: Option<UnixMillis>,
    not_before: UnixMillis,
    doomed: bool,
) -> Fallible<()> {
    match next {
        None => connection
            .prepare_cached("DELETE FROM backlog WHERE endpoint = ?1")?
            .execute([endpoint.as_bytes()])?,
        Some(next) => connection
            .prepare_cached(
                "UPDATE backlog SET next_due = ?2, not_before = ?3, doomed = ?4, is_full = 0 WHERE endpoint = ?1",
            )?
            .execute(params![
                endpoint.as_bytes(),
                next.max(not_before).0,
                not_before.0,
                doomed
            ])?,
    };
    Ok(())
}

/// Earliest due time of an `ordered` endpoint's rows without a sequence, expired leases among them. None is out.
fn earliest_apart(connection: &Connection, endpoint: EndpointId) -> Fallible<Option<i64>> {
    Ok(connection
        .prepare_cached(
            "SELECT min(due_at) FROM (
                SELECT * FROM (SELECT due_at, seq FROM waiting
                    WHERE endpoint = ?1 AND leased = 0 ORDER BY due_at LIMIT ?2)
                UNION ALL SELECT * FROM (SELECT due_at, seq FROM waiting
                    WHERE endpoint = ?1 AND leased = 1 ORDER BY due_at LIMIT ?2)) WHERE seq = 0",
        )?
        .query_row(params![endpoint.as_bytes(), APART_LOOK_MAX], |row| row.get(0))?)
}

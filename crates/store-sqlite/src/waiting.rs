//! `WaitingStore`: which endpoints are due, and leases.
//!
//! `backlog.next_due` is when an endpoint is next looked at. It may be early (the look finds nothing and corrects it),
//! never late: whatever makes a row due earlier wakes the endpoint in the same transaction. `not_before` holds back
//! even that, for a claim's hold and for a grant's pace.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use postrider_model::{AppId, DeliveryId, EndpointId, UnixMillis};
use postrider_store::{
    DueEndpoint, EndpointBacklog, Grant, LeasedJob, PARK_DEATHS, ReasonCount, SUSPECT_DEATHS, SUSPECT_REST,
    StoreError, WaitingStore,
};
use rusqlite::{Connection, OptionalExtension, params};

use crate::SqliteStore;
use crate::codec;
use crate::error::{Fallible, unavailable};

mod lease;

/// Endpoints that a look for the oldest ready delivery visits.
const READY_LOOK_MAX: i64 = 1_000;

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
    let apart = lease::earliest_apart(connection, endpoint)?;
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
fn set_next(
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

fn claim_due(
    connection: &Connection,
    limit: u32,
    count_max: u32,
    hold: Duration,
) -> Fallible<Vec<DueEndpoint>> {
    let now = UnixMillis::now();
    let candidates = connection
        .prepare_cached(
            "SELECT endpoint, app, next_due FROM backlog WHERE next_due <= ?1 ORDER BY next_due LIMIT ?2",
        )?
        .query_map(params![now.0, limit], |row| {
            Ok((codec::id(row, 0)?, codec::id(row, 1)?, codec::time(row, 2)?))
        })?
        .collect::<rusqlite::Result<Vec<(EndpointId, AppId, UnixMillis)>>>()?;
    let mut due = Vec::with_capacity(candidates.len());
    for (endpoint, app, look) in candidates {
        let standing = standing(connection, endpoint)?;
        if standing.held {
            let never = Some(UnixMillis::NEVER);
            set_next(connection, endpoint, never, UnixMillis(0), standing.doomed)?;
            continue;
        }
        let looked = lease::look(connection, endpoint, standing.ordered, now, count_max)?;
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
                    since: since.max(look),
                });
            }
            None => {
                let next = earliest(connection, endpoint, standing.ordered, now)?;
                set_next(connection, endpoint, next, UnixMillis(0), false)?;
            }
        }
    }
    Ok(due)
}

fn give_back(connection: &Connection, leases: &[(DeliveryId, u32)], delay: Duration) -> Fallible<()> {
    let due = UnixMillis::now().plus(delay);
    let mut update = connection.prepare_cached(
        "UPDATE waiting SET due_at = ?3, leased = 0 WHERE delivery = ?1 AND run = ?2 AND leased = 1
         RETURNING endpoint, app",
    )?;
    for (delivery, run) in leases {
        let given = update
            .query_row(params![delivery.as_bytes(), run, due.0], |row| {
                Ok((codec::id(row, 0)?, codec::id(row, 1)?))
            })
            .optional()?;
        if let Some((endpoint, app)) = given {
            let standing = standing(connection, endpoint)?;
            let due = if standing.held { UnixMillis::NEVER } else { due };
            wake(connection, endpoint, app, due, standing.doomed)?;
        }
    }
    Ok(())
}

fn release_all_leases(connection: &Connection, died: bool) -> Fallible<u64> {
    let now = UnixMillis::now();
    let rested = now.plus(SUSPECT_REST);
    let endpoints = connection
        .prepare_cached("SELECT endpoint, app FROM backlog")?
        .query_map([], |row| Ok((codec::id(row, 0)?, codec::id(row, 1)?)))?
        .collect::<rusqlite::Result<Vec<(EndpointId, AppId)>>>()?;
    let mut released = 0;
    for (endpoint, app) in endpoints {
        let rows = connection
            .prepare_cached(
                "UPDATE waiting SET leased = 0, deaths = deaths + ?3,
                    due_at = CASE WHEN deaths + ?3 BETWEEN ?5 AND ?6 - 1 THEN ?4 ELSE ?2 END
                 WHERE endpoint = ?1 AND leased = 1",
            )?
            .execute(params![
                endpoint.as_bytes(),
                now.0,
                u32::from(died),
                rested.0,
                SUSPECT_DEATHS,
                PARK_DEATHS
            ])?;
        if rows > 0 {
            released += u64::try_from(rows).unwrap_or(u64::MAX);
            let standing = standing(connection, endpoint)?;
            let due = if standing.held { UnixMillis::NEVER } else { now };
            connection
                .prepare_cached("UPDATE backlog SET not_before = 0 WHERE endpoint = ?1")?
                .execute([endpoint.as_bytes()])?;
            wake(connection, endpoint, app, due, standing.doomed)?;
        }
    }
    Ok(released)
}

/// Those of the endpoints that are full.
fn full_among(connection: &Connection, endpoints: &HashSet<EndpointId>) -> Fallible<Vec<EndpointId>> {
    let full = connection
        .prepare_cached("SELECT endpoint FROM backlog INDEXED BY backlog_full WHERE is_full = 1")?
        .query_map([], |row| codec::id(row, 0))?
        .collect::<rusqlite::Result<Vec<EndpointId>>>()?;
    Ok(full
        .into_iter()
        .filter(|endpoint| endpoints.contains(endpoint))
        .collect())
}

fn look_again(connection: &Connection, endpoints: &[EndpointId]) -> Fallible<u64> {
    let mut update = connection.prepare_cached(
        "UPDATE backlog SET next_due = min(next_due, ?2), not_before = 0, is_full = 0
         WHERE endpoint = ?1 AND is_full = 1 AND next_due < ?3",
    )?;
    let now = UnixMillis::now();
    let mut woken = 0;
    for endpoint in endpoints {
        let done = update.execute(params![endpoint.as_bytes(), now.0, UnixMillis::NEVER.0])?;
        woken += u64::from(done > 0);
    }
    Ok(woken)
}

fn waiting_counts(connection: &Connection) -> Fallible<(Vec<ReasonCount>, Duration)> {
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

fn busiest(connection: &Connection, limit: u32) -> Fallible<Vec<EndpointBacklog>> {
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

#[async_trait]
impl WaitingStore for SqliteStore {
    async fn claim_due(
        &self,
        limit: u32,
        count_max: u32,
        hold: Duration,
    ) -> Result<Vec<DueEndpoint>, StoreError> {
        // An idle scheduler asks often; only a due endpoint is worth a write.
        match self.next_due().await? {
            Some(due) if due <= UnixMillis::now() => {}
            _ => return Ok(Vec::new()),
        }
        self.write(move |connection| claim_due(connection, limit, count_max, hold))
            .await
    }

    async fn lease(&self, grants: &[Grant], lease: Duration) -> Result<Vec<LeasedJob>, StoreError> {
        let grants = grants.to_vec();
        let leased = self
            .write(move |connection| lease::lease(connection, &grants, lease))
            .await?;
        let keyring = self.keyring.clone();
        let opened = tokio::task::spawn_blocking(move || lease::open(leased, &keyring));
        opened.await.map_err(|_| unavailable("opening payloads panicked"))
    }

    async fn give_back(&self, leases: &[(DeliveryId, u32)], delay: Duration) -> Result<(), StoreError> {
        let leases = leases.to_vec();
        self.write(move |connection| give_back(connection, &leases, delay))
            .await
    }

    async fn release_all_leases(&self, died: bool) -> Result<u64, StoreError> {
        self.write(move |connection| release_all_leases(connection, died))
            .await
    }

    async fn begin_trial(&self, delivery: DeliveryId, run: u32) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let inserted = connection
                .prepare_cached("INSERT OR IGNORE INTO trials (delivery, run, at) VALUES (?1, ?2, ?3)")?
                .execute(params![delivery.as_bytes(), run, UnixMillis::now().0])?;
            Ok(inserted == 0)
        })
        .await
    }

    async fn look_again(&self, endpoints: &[EndpointId]) -> Result<u64, StoreError> {
        let among: HashSet<EndpointId> = endpoints.iter().copied().collect();
        // Asked after every batch; mostly none is full, which is not worth a write.
        let full = self
            .read(move |connection| full_among(connection, &among))
            .await?;
        if full.is_empty() {
            return Ok(0);
        }
        self.write(move |connection| look_again(connection, &full)).await
    }

    async fn next_due(&self) -> Result<Option<UnixMillis>, StoreError> {
        self.read(|connection| {
            let next = connection
                .prepare_cached("SELECT next_due FROM backlog WHERE next_due < ?1 ORDER BY next_due LIMIT 1")?
                .query_row([UnixMillis::NEVER.0], |row| codec::time(row, 0))
                .optional()?;
            Ok(next)
        })
        .await
    }

    async fn waiting_counts(&self) -> Result<(Vec<ReasonCount>, Duration), StoreError> {
        self.read(waiting_counts).await
    }

    async fn busiest(&self, limit: u32) -> Result<Vec<EndpointBacklog>, StoreError> {
        self.read(move |connection| busiest(connection, limit)).await
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        Ok(UnixMillis::now())
    }
}

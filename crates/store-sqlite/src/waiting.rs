//! `WaitingStore`: which endpoints are due, and leases.
//!
//! `backlog.next_due` is when an endpoint is next looked at. It may be early (the look finds nothing and corrects it),
//! never late: whatever makes a row due earlier wakes the endpoint in the same transaction. `not_before` holds back
//! even that, for a claim's hold and for a grant's pace.

mod claim;
pub(crate) mod counts;
mod lease;
mod look;
mod suspects;

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use postrider_model::{AppId, DeliveryId, EndpointId, UnixMillis};
use postrider_store::{
    DueEndpoint, EndpointBacklog, Grant, LeasedJob, PARK_DEATHS, ReasonCount, SUSPECT_DEATHS, SUSPECT_REST,
    StoreError, WaitingStore,
};
use rusqlite::{Connection, OptionalExtension, params};

use self::claim::claim_due;
use self::counts::{busiest, waiting_counts};
pub(crate) use self::look::{reconsider, standing, wake, wake_ordered};
use crate::SqliteStore;
use crate::codec;
use crate::error::{Fallible, unavailable};

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

#[async_trait]
impl WaitingStore for SqliteStore {
    async fn claim_due(
        &self,
        limit: u32,
        count_max: u32,
        hold: Duration,
        lag: Duration,
    ) -> Result<Vec<DueEndpoint>, StoreError> {
        // An idle scheduler asks often; only a due endpoint is worth a write.
        match self.next_due().await? {
            Some(due) if due <= UnixMillis::now() => {}
            _ => return Ok(Vec::new()),
        }
        self.write(move |connection| claim_due(connection, limit, count_max, hold, lag))
            .await
    }

    async fn lease(
        &self,
        grants: &[Grant],
        lease: Duration,
        lag: Duration,
    ) -> Result<Vec<LeasedJob>, StoreError> {
        let grants = grants.to_vec();
        let leased = self
            .write(move |connection| lease::lease(connection, &grants, lease, lag))
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

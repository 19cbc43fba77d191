//! The scheduler's side: due endpoints, leases.
//!
//! A waiting row is due when its `due_at` has passed, leased or not: leasing raises `run`, sets `leased` and moves
//! `due_at` to the end of the lease, so an expired lease is due again by itself. Each endpoint with waiting rows has
//! one row in `backlog` with the earliest due time (`NEVER` while paused), which is what the scheduler looks at.
//!
//! While the journal lags, the outcome of a lease may be on record only long after its end. So whoever claims says how far
//! the journal is behind, and a lease is out for as much longer: what is taken then was surely not answered.

use std::time::Duration;

use async_trait::async_trait;
use postrider_model::{AppId, DeferReason, DeliveryId, EndpointId, Job, UnixMillis};

use crate::error::StoreError;

/// An endpoint with due deliveries.
#[derive(Clone, Copy, Debug)]
pub struct DueEndpoint {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its application.
    pub app: AppId,
    /// Its rate limit, a second.
    pub throttle_rate: Option<u32>,
    /// First in, first out: at most one lease at a time, from the head.
    pub ordered: bool,
    /// Deliveries that are due now, counted up to the claim's `count_max`. For an `ordered` endpoint: how many may
    /// go in a run, 0 while one is out or its head is not due.
    pub due: u32,
    /// Leases that are out, counted up to the claim's `count_max`. What is sent as it came, without having been handed out
    /// from the store, counts for an `ordered` endpoint only.
    pub out: u32,
    /// Since when it is late: the earliest due time among the due, or when it was to be looked at if that was later.
    pub since: UnixMillis,
}

/// An endpoint of which nothing is due but leases that wait for the journal is looked at again after so long.
pub const LAG_REST: Duration = Duration::from_secs(1);

/// The scheduler's decision for a claimed endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Deliveries to lease, in order of due time (`ordered`: of sequence); 0 leases none.
    pub count: u32,
    /// The one leased delivery is a breaker's probe.
    pub probe: bool,
    /// Its rate tokens are taken.
    pub has_token: bool,
    /// First in, first out.
    pub ordered: bool,
    /// The endpoint is not looked at again before this long, even when more is due.
    pub not_before: Duration,
    /// As many leases are out as may be: [`WaitingStore::look_again`] ends `not_before` early.
    pub is_full: bool,
}

/// A delivery that was leased at so many deaths of the process, one after the other, is a suspect: of all suspects one
/// is leased at a time.
pub const SUSPECT_DEATHS: u32 = 3;

/// A suspect that was leased, alone, at further deaths up to this number kills the process: it is to be parked.
pub const PARK_DEATHS: u32 = 5;

/// After a death, suspects wait for so long: what else kills the process does so first.
pub const SUSPECT_REST: Duration = Duration::from_secs(2);

/// A leased delivery. `job.lease_until` is set.
#[derive(Clone, Debug)]
pub struct LeasedJob {
    /// What to publish.
    pub job: Job,
    /// Deaths of the process at which it was leased, since an outcome was last recorded (embedded set-up only; see
    /// [`WaitingStore::release_all_leases`]).
    pub deaths: u32,
}

/// How many deliveries wait for a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonCount {
    /// The reason.
    pub reason: DeferReason,
    /// How many, exact up to 100,000 and then an estimate.
    pub count: u64,
}

/// What waits for one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointBacklog {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its application.
    pub app: AppId,
    /// How many deliveries wait. Postgres: exact while fewer than 100,000 wait in all and then an estimate. SQLite: what
    /// has not ended, which is the same there, as whatever the in-process broker holds has a waiting row too.
    pub count: u64,
    /// When the first of them is due (`ordered`: the head).
    pub due_at: UnixMillis,
}

/// Hands out what waits.
#[async_trait]
pub trait WaitingStore: Send + Sync + 'static {
    /// Claims up to `limit` endpoints whose earliest due time has passed, longest due first, passing over those that
    /// another scheduler holds; they are not offered again for `hold`. Endpoints that are paused, disabled or deleted
    /// are never offered. A lease is out until `lag` after its end.
    async fn claim_due(
        &self,
        limit: u32,
        count_max: u32,
        hold: Duration,
        lag: Duration,
    ) -> Result<Vec<DueEndpoint>, StoreError>;

    /// Leases for claimed endpoints, each for `lease` doubled by every earlier lease of the row that expired (at most
    /// one hour), and sets when each endpoint is next looked at. Rows whose message is not recorded yet stay. Rows whose
    /// payload is gone are cancelled on record (`PayloadExpired`). Earlier leases are out until `lag` after their end.
    async fn lease(
        &self,
        grants: &[Grant],
        lease: Duration,
        lag: Duration,
    ) -> Result<Vec<LeasedJob>, StoreError>;

    /// Gives leases back that could not be published: due again after `delay`, if the run is still current.
    async fn give_back(&self, leases: &[(DeliveryId, u32)], delay: Duration) -> Result<(), StoreError>;

    /// Makes every leased row due now, and tells how many: for the embedded set-up, whose broker is empty when it
    /// starts. `died` counts a death against each of them, which any outcome but an in-flight notice takes back: at a
    /// start, because a process that stops in order releases its leases itself, with `died` false.
    ///
    /// From [`SUSPECT_DEATHS`] on a row is due after [`SUSPECT_REST`] only, and [`Self::lease`] hands out one such row
    /// at a time, in an `ordered` run as its only one. From [`PARK_DEATHS`] on it goes like any other, to be parked.
    async fn release_all_leases(&self, died: bool) -> Result<u64, StoreError>;

    /// Marks a run of a delivery as being on trial; true when it was marked before. Marks are kept for a day.
    async fn begin_trial(&self, delivery: DeliveryId, run: u32) -> Result<bool, StoreError>;

    /// Has endpoints that were full (see [`Grant::is_full`]) looked at now: a lease of theirs ended. The others stay as
    /// they are. Returns how many were full.
    async fn look_again(&self, endpoints: &[EndpointId]) -> Result<u64, StoreError>;

    /// When the next endpoint is due, for the scheduler's sleep; `None` when nothing waits.
    async fn next_due(&self) -> Result<Option<UnixMillis>, StoreError>;

    /// What waits, by reason, and how long the oldest ready delivery has been ready.
    ///
    /// *Ready* is what the next round of a scheduler would be offered: the row is due, its endpoint is not paused,
    /// disabled or deleted, no run of an `ordered` endpoint is out before it, and the time at which the endpoint is to be
    /// looked at next (moved on by an empty bucket, an open breaker, a full endpoint) has passed. The age counts from when
    /// all of that was so. Of the 1,000 endpoints that are next.
    async fn waiting_counts(&self) -> Result<(Vec<ReasonCount>, Duration), StoreError>;

    /// The endpoints for which most deliveries wait, most first. Reads no more than counters or a sample.
    async fn busiest(&self, limit: u32) -> Result<Vec<EndpointBacklog>, StoreError>;

    /// The store's clock.
    async fn now(&self) -> Result<UnixMillis, StoreError>;
}

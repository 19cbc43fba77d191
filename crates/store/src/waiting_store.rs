//! The scheduler's side: due endpoints, leases.
//!
//! A waiting row is due when its `due_at` has passed, leased or not: leasing raises `run`, sets `leased` and moves
//! `due_at` to the end of the lease, so an expired lease is due again by itself. Each endpoint with waiting rows has
//! one row in `backlog` with the earliest due time (`NEVER` while paused), which is what the scheduler looks at.

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
    /// Leases that are out and have not expired, counted up to the claim's `count_max`.
    pub out: u32,
    /// The earliest due time among the due.
    pub since: UnixMillis,
}

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
}

/// A leased delivery. `job.lease_until` is set.
#[derive(Clone, Debug)]
pub struct LeasedJob {
    /// What to publish.
    pub job: Job,
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
    /// How many deliveries wait, exact while fewer than 100,000 wait in all and then an estimate.
    pub count: u64,
    /// When the first of them is due (`ordered`: the head).
    pub due_at: UnixMillis,
}

/// Hands out what waits.
#[async_trait]
pub trait WaitingStore: Send + Sync + 'static {
    /// Claims up to `limit` endpoints whose earliest due time has passed, longest due first, passing over those that
    /// another scheduler holds; they are not offered again for `hold`. Endpoints that are paused, disabled or deleted
    /// are never offered.
    async fn claim_due(
        &self,
        limit: u32,
        count_max: u32,
        hold: Duration,
    ) -> Result<Vec<DueEndpoint>, StoreError>;

    /// Leases for claimed endpoints, each for `lease` doubled by every earlier lease of the row that expired (at most
    /// one hour), and sets when each endpoint is next looked at. Rows whose message is not recorded yet stay. Rows whose
    /// payload is gone are cancelled on record (`PayloadExpired`).
    async fn lease(&self, grants: &[Grant], lease: Duration) -> Result<Vec<LeasedJob>, StoreError>;

    /// Gives leases back that could not be published: due again after `delay`, if the run is still current.
    async fn give_back(&self, leases: &[(DeliveryId, u32)], delay: Duration) -> Result<(), StoreError>;

    /// Makes every leased row due now: at the start of the embedded set-up, whose broker is empty.
    async fn release_all_leases(&self) -> Result<u64, StoreError>;

    /// When the next endpoint is due, for the scheduler's sleep; `None` when nothing waits.
    async fn next_due(&self) -> Result<Option<UnixMillis>, StoreError>;

    /// What waits, by reason, and the age of the oldest due one.
    async fn waiting_counts(&self) -> Result<(Vec<ReasonCount>, Duration), StoreError>;

    /// The endpoints for which most deliveries wait, most first. Costs a look at every waiting row, or at a sample.
    async fn busiest(&self, limit: u32) -> Result<Vec<EndpointBacklog>, StoreError>;

    /// The store's clock.
    async fn now(&self) -> Result<UnixMillis, StoreError>;
}

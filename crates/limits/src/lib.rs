//! Shared, forgetful state: idempotency claims, rate limits, breakers, done marks, backlog flags and versions of
//! configuration. A trait, its in-process implementation, and the fall-back from a shared one to it.
//!
//! Nothing here is needed for correctness of delivery: losing all of it costs duplicates and coarser limits, never
//! a message (guarantee 5). Every call takes a batch and costs one round trip.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use postrider_model::AppId;
use tokio::sync::broadcast;

pub mod breaker;
pub mod conformance;
mod endpoint;
mod expiring;
mod fallback;
mod forgotten;
pub mod gcra;
mod in_process;
mod marks;
mod types;

pub use fallback::Fallback;
pub use in_process::InProcess;
pub use types::{
    Admission, AdmitRequest, BACKLOG_TTL, BreakerChange, BreakerSettings, ClaimAnswer, ClaimEnd,
    ClaimRequest, DONE_MARK_TTL, FinishReport, Gate, GateRequest, RESTART, RESTART_REST, Rate, Release,
    ReleaseRequest, Settlement, Signal, Verdict,
};

/// The shared state could not be reached in time. Callers go on without it.
#[derive(Debug, thiserror::Error)]
#[error("limits: {message}")]
pub struct LimitsError {
    /// What was tried.
    pub message: String,
    /// Why it failed.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Short-lived state shared by all processes.
#[async_trait]
pub trait Limits: Send + Sync + 'static {
    /// Gateway: claims keys, takes from the application's quota and learns its configuration's version.
    async fn admit(&self, batch: &[AdmitRequest]) -> Result<Vec<Admission>, LimitsError>;

    /// Gateway: turns claims into finished ones (after the confirm) or gives them up (after a refusal).
    async fn settle(&self, batch: &[Settlement]) -> Result<(), LimitsError>;

    /// Gateway and ledger: the version of an application's configuration after a commit; wakes all caches. A
    /// version that is not newer than the known one changes nothing and wakes nobody.
    async fn publish_version(&self, app: AppId, version: u64) -> Result<(), LimitsError>;

    /// Applications whose configuration changed. A receiver that lags, or that gets [`EVERY_APP`], must assume
    /// that all did. This is the fast path only: `admit` and `gate` tell the version too.
    fn invalidations(&self) -> broadcast::Receiver<AppId>;

    /// Worker: may these deliveries be tried now?
    async fn gate(&self, batch: &[GateRequest]) -> Result<Vec<Gate>, LimitsError>;

    /// Worker: what came of them. Sets done marks, moves breakers, pushes endpoints back.
    async fn finish(&self, batch: &[FinishReport]) -> Result<Vec<BreakerChange>, LimitsError>;

    /// Scheduler: how much of an endpoint's backlog may be released now? Takes the tokens and the probe lease.
    async fn release(&self, batch: &[ReleaseRequest]) -> Result<Vec<Release>, LimitsError>;

    /// How many breakers are open or half-open. Those whose endpoint was not tried for [`breaker::MEMORY`] since
    /// are forgotten.
    async fn open_breakers(&self) -> Result<u64, LimitsError>;

    /// Whether the state is shared and reachable; for readiness and metrics.
    async fn ping(&self) -> Result<(), LimitsError>;
}

/// A shared handle.
pub type SharedLimits = Arc<dyn Limits>;

/// The application that stands for all of them among the [`Limits::invalidations`]: the subscription was away for
/// a while, so any configuration may have changed. No real application has this id.
pub const EVERY_APP: AppId = AppId::from_uuid(uuid::Uuid::nil());

/// Longest time that an endpoint can be pushed back; longer requests are cut to it.
pub const PUSH_BACK_MAX: Duration = Duration::from_secs(24 * 3600);

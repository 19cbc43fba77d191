//! Asks the shared limits for many requests at once.
//!
//! Calls carry what [gathers](crate::gather) while the one before is on its way. Nothing here may fail a request: without
//! an answer in [`CALL_TIMEOUT`] the request goes on as if it had claimed its keys (guarantee 5).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use postrider_broker::Pace;
use postrider_limits::{Admission, AdmitRequest, ClaimAnswer, Settlement, SharedLimits};
use tokio_util::task::TaskTracker;

use crate::gather::Gather;
use crate::metrics::Metrics;

/// Most claims of one call.
const CALL_CLAIMS_MAX: usize = 1024;
/// Most settlements that wait; more are dropped, and their claims can be taken over later.
const SETTLEMENTS_MAX: usize = 100_000;
/// How long a call may take.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between the beats on which calls that settle start, unless one is full: each costs both sides a trip, and nobody waits
/// but a repeat that comes sooner than this.
const SETTLEMENTS_PACE: Duration = Duration::from_millis(24);

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Admitter(Arc<Inner>);

struct Inner {
    limits: SharedLimits,
    tasks: TaskTracker,
    metrics: Arc<Metrics>,
    admissions: Gather<AdmitRequest, Admission>,
    settlements: Mutex<Settlements>,
}

struct Settlements {
    waiting: Vec<Settlement>,
    in_flight: bool,
    pace: Pace,
}

impl Admitter {
    pub(crate) fn new(limits: SharedLimits, tasks: TaskTracker, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            limits,
            tasks,
            metrics,
            admissions: Gather::new(|request| request.claims.len(), CALL_CLAIMS_MAX),
            settlements: Mutex::new(Settlements {
                waiting: Vec::new(),
                in_flight: false,
                pace: Pace::new(SETTLEMENTS_PACE),
            }),
        }))
    }

    /// The answer to one request. Without the shared state: no version, no quota, every key claimed.
    pub(crate) async fn admit(&self, request: AdmitRequest) -> Admission {
        let claims = request.claims.len();
        let (answered, lead) = self.0.admissions.ask(request);
        if lead {
            self.0.tasks.spawn(Arc::clone(&self.0).admit_all());
        }
        match answered.await {
            Ok(admission) => admission,
            Err(_) => Admission {
                version: None,
                quota_wait: None,
                claims: vec![ClaimAnswer::Claimed; claims],
                has_forgotten: true,
            },
        }
    }

    /// Settles claims before it returns, unless the limits are away.
    pub(crate) async fn settle_now(&self, settlements: Vec<Settlement>) {
        if !settlements.is_empty() {
            self.0.settle(&settlements).await;
        }
    }

    /// Settles claims soon. A settlement that gets lost leaves a claim that a repeat takes over with the same id.
    pub(crate) fn settle(&self, settlements: impl IntoIterator<Item = Settlement>) {
        let lead = {
            let mut state = self.0.settlements.lock();
            let room = SETTLEMENTS_MAX.saturating_sub(state.waiting.len());
            state.waiting.extend(settlements.into_iter().take(room));
            let lead = !state.waiting.is_empty() && !state.in_flight;
            state.in_flight |= lead;
            lead
        };
        if lead {
            self.0.tasks.spawn(Arc::clone(&self.0).settle_all());
        }
    }
}

impl Inner {
    async fn admit_all(self: Arc<Self>) {
        self.admissions.answer(|requests| self.admit(requests)).await;
    }

    /// The answers, or none without the limits.
    async fn admit(&self, requests: Vec<AdmitRequest>) -> Vec<Admission> {
        match tokio::time::timeout(CALL_TIMEOUT, self.limits.admit(&requests)).await {
            Ok(Ok(admissions)) => admissions,
            Ok(Err(error)) => {
                self.metrics.limits_failed();
                tracing::warn!(%error, "accepting without idempotency and quotas");
                Vec::new()
            }
            Err(_) => {
                self.metrics.limits_failed();
                tracing::warn!("the limits did not answer; accepting without idempotency and quotas");
                Vec::new()
            }
        }
    }

    async fn settle_all(self: Arc<Self>) {
        let _end = Settling(&self.settlements);
        loop {
            let at = {
                let mut state = self.settlements.lock();
                if state.waiting.is_empty() {
                    state.in_flight = false;
                    return;
                }
                state.pace.next()
            };
            if let Some(at) = at {
                tokio::time::sleep_until(at).await;
            }
            let batch = self.settlements.lock().take();
            self.settle(&batch).await;
        }
    }

    async fn settle(&self, batch: &[Settlement]) {
        match tokio::time::timeout(CALL_TIMEOUT, self.limits.settle(batch)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => self.metrics.limits_failed(),
        }
    }
}

/// The one that settles. When it panics the next settlement takes over.
struct Settling<'a>(&'a Mutex<Settlements>);

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().in_flight = false;
        }
    }
}

impl Settlements {
    fn take(&mut self) -> Vec<Settlement> {
        if self.waiting.len() <= CALL_CLAIMS_MAX {
            self.pace.started();
            return std::mem::take(&mut self.waiting);
        }
        self.pace.reset();
        self.waiting.drain(..CALL_CLAIMS_MAX).collect()
    }
}

#[cfg(test)]
mod tests;

//! The shared state with a local stand-in: a call that the shared one fails is answered by this process alone.
//!
//! Rates are then divided by the number of processes expected to share them (at least 1 a second each), claims and
//! done marks are this process' alone, and versions are unknown. A dead server costs a few time-outs, not one a call:
//! after three errors in a row it is left alone for half a second, and then tried by one call at a time. Each call
//! answered locally is reported to `observe` (for the metric `limits_fallback`) and, at most once in 5 s, logged.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use postrider_model::AppId;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{
    Admission, AdmitRequest, BreakerChange, EVERY_APP, FinishReport, Gate, GateRequest, InProcess, Limits,
    LimitsError, Rate, Release, ReleaseRequest, Settlement, SharedLimits,
};

/// Errors in a row after which the shared state is left alone for a while.
const ERRORS: u32 = 3;
/// How long it is left alone.
const SKIP: Duration = Duration::from_millis(500);
/// How long no call must have failed until it counts as back.
const QUIET: Duration = Duration::from_secs(1);
/// Least time between two log lines.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// Versions kept to be published when the shared state is back; more are found by the caches' own refresh.
const UNPUBLISHED: usize = 1024;
const INVALIDATIONS: usize = 1024;

/// [`Limits`] that never fail, except for [`Limits::ping`].
pub struct Fallback {
    inner: Arc<Inner>,
    invalidations: broadcast::Sender<AppId>,
    _forwarding: JoinSet<()>,
}

struct Inner {
    shared: SharedLimits,
    local: InProcess,
    processes: u32,
    observe: Box<dyn Fn(&'static str) + Send + Sync>,
    health: Health,
    unpublished: Mutex<HashMap<AppId, u64>>,
}

impl Fallback {
    /// `shared`, and `local` when it fails. `expected_processes` is how many share a rate; 0 counts as 1.
    /// `observe` is called with the name of each call that was answered locally.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn new(
        shared: SharedLimits,
        local: InProcess,
        expected_processes: u32,
        observe: impl Fn(&'static str) + Send + Sync + 'static,
    ) -> Self {
        let invalidations = broadcast::channel(INVALIDATIONS).0;
        let mut forwarding = JoinSet::new();
        for source in [shared.invalidations(), local.invalidations()] {
            forwarding.spawn(forward(source, invalidations.clone()));
        }
        let inner = Inner {
            shared,
            local,
            processes: expected_processes.max(1),
            observe: Box::new(observe),
            health: Health::default(),
            unpublished: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
            invalidations,
            _forwarding: forwarding,
        }
    }

    /// Whether a call to the shared state failed, and none has succeeded since a second after the last failure: a server may
    /// answer some calls and refuse others.
    pub fn degraded(&self) -> bool {
        self.inner.health.degraded.load(Ordering::Relaxed)
    }

    /// Asks the shared state unless it is being left alone; `None` means: answer locally.
    async fn shared<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, LimitsError>> + Send,
    ) -> Option<T> {
        let inner = &self.inner;
        if !inner.health.may_try() {
            (inner.observe)(what);
            return None;
        }
        match call.await {
            Ok(answer) => {
                if self.degraded() {
                    if !inner.unpublished.lock().is_empty() {
                        tokio::spawn(publish_late(Arc::clone(inner)));
                    }
                    if inner.health.succeeded() {
                        tracing::info!("limits: the shared state is back");
                    }
                }
                Some(answer)
            }
            Err(error) => {
                (inner.observe)(what);
                if inner.health.failed() {
                    let source = error.source.as_deref().map(tracing::field::display);
                    tracing::warn!(what, %error, source, "limits: shared state unreachable, answering locally");
                }
                None
            }
        }
    }

    fn share(&self, rate: Option<Rate>) -> Option<Rate> {
        let share = |total: u32| (total / self.inner.processes).max(1);
        rate.map(|rate| Rate {
            per_second: share(rate.per_second),
            burst: share(rate.burst),
        })
    }
}

async fn forward(mut source: broadcast::Receiver<AppId>, target: broadcast::Sender<AppId>) {
    loop {
        let app = match source.recv().await {
            Ok(app) => app,
            Err(broadcast::error::RecvError::Lagged(_)) => EVERY_APP,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        // Nobody listening is fine.
        let _ = target.send(app);
    }
}

/// Publishes the versions that could not be while the shared state was away.
async fn publish_late(inner: Arc<Inner>) {
    let late = std::mem::take(&mut *inner.unpublished.lock());
    let mut is_away = false;
    for (app, version) in late {
        is_away = is_away || inner.shared.publish_version(app, version).await.is_err();
        if is_away {
            inner.keep_unpublished(app, version);
        }
    }
}

impl Inner {
    fn keep_unpublished(&self, app: AppId, version: u64) {
        let mut unpublished = self.unpublished.lock();
        if unpublished.len() < UNPUBLISHED || unpublished.contains_key(&app) {
            let known = unpublished.entry(app).or_default();
            *known = version.max(*known);
        }
    }
}

#[async_trait]
impl Limits for Fallback {
    async fn admit(&self, batch: &[AdmitRequest]) -> Result<Vec<Admission>, LimitsError> {
        if let Some(answer) = self.shared("admit", self.inner.shared.admit(batch)).await {
            return Ok(answer);
        }
        let mut batch = batch.to_vec();
        for request in &mut batch {
            request.quota = self.share(request.quota);
        }
        let mut answer = self.inner.local.admit(&batch).await?;
        for admission in &mut answer {
            // What this process knows may be older than what another one committed.
            admission.version = None;
            admission.has_forgotten = true;
        }
        Ok(answer)
    }

    async fn settle(&self, batch: &[Settlement]) -> Result<(), LimitsError> {
        // A claim is where it was made, and the shared state may have come or gone since.
        self.inner.local.settle(batch).await?;
        self.shared("settle", self.inner.shared.settle(batch)).await;
        Ok(())
    }

    async fn publish_version(&self, app: AppId, version: u64) -> Result<(), LimitsError> {
        let call = self.inner.shared.publish_version(app, version);
        if self.shared("publish_version", call).await.is_none() {
            self.inner.keep_unpublished(app, version);
            self.inner.local.publish_version(app, version).await?;
        }
        Ok(())
    }

    fn invalidations(&self) -> broadcast::Receiver<AppId> {
        self.invalidations.subscribe()
    }

    async fn gate(&self, batch: &[GateRequest]) -> Result<Vec<Gate>, LimitsError> {
        if let Some(answer) = self.shared("gate", self.inner.shared.gate(batch)).await {
            return Ok(answer);
        }
        let share = |request: &GateRequest| GateRequest {
            rate: self.share(request.rate),
            ..*request
        };
        let batch: Vec<_> = batch.iter().map(share).collect();
        let mut answer = self.inner.local.gate(&batch).await?;
        for gate in &mut answer {
            gate.version = None;
        }
        Ok(answer)
    }

    async fn finish(&self, batch: &[FinishReport]) -> Result<Vec<BreakerChange>, LimitsError> {
        match self.shared("finish", self.inner.shared.finish(batch)).await {
            Some(answer) => Ok(answer),
            None => self.inner.local.finish(batch).await,
        }
    }

    async fn release(&self, batch: &[ReleaseRequest]) -> Result<Vec<Release>, LimitsError> {
        if let Some(answer) = self.shared("release", self.inner.shared.release(batch)).await {
            return Ok(answer);
        }
        let share = |request: &ReleaseRequest| ReleaseRequest {
            rate: self.share(request.rate),
            ..*request
        };
        let batch: Vec<_> = batch.iter().map(share).collect();
        self.inner.local.release(&batch).await
    }

    async fn open_breakers(&self) -> Result<u64, LimitsError> {
        match self
            .shared("open_breakers", self.inner.shared.open_breakers())
            .await
        {
            Some(open) => Ok(open),
            None => self.inner.local.open_breakers().await,
        }
    }

    async fn ping(&self) -> Result<(), LimitsError> {
        self.inner.shared.ping().await
    }
}

#[derive(Default)]
struct Health {
    errors: AtomicU32,
    degraded: AtomicBool,
    times: Mutex<Times>,
}

#[derive(Default)]
struct Times {
    skip_until: Option<Instant>,
    failed: Option<Instant>,
    logged: Option<Instant>,
}

impl Health {
    fn may_try(&self) -> bool {
        if self.errors.load(Ordering::Relaxed) < ERRORS {
            return true;
        }
        let now = Instant::now();
        let mut times = self.times.lock();
        if times.skip_until.is_some_and(|until| now < until) {
            return false;
        }
        // This call tries; the others wait for what it finds.
        times.skip_until = Some(now + SKIP);
        true
    }

    /// Whether it is back by this answer while degraded.
    fn succeeded(&self) -> bool {
        self.errors.store(0, Ordering::Relaxed);
        let failed = self.times.lock().failed;
        let is_quiet = failed.is_none_or(|at| at.elapsed() >= QUIET);
        is_quiet && self.degraded.swap(false, Ordering::Relaxed)
    }

    /// Whether to log it.
    fn failed(&self) -> bool {
        self.degraded.store(true, Ordering::Relaxed);
        let errors = self.errors.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let now = Instant::now();
        let mut times = self.times.lock();
        times.failed = Some(now);
        if errors >= ERRORS {
            times.skip_until = Some(now + SKIP);
        }
        let log = times.logged.is_none_or(|at| now.duration_since(at) >= LOG_EVERY);
        if log {
            times.logged = Some(now);
        }
        log
    }
}

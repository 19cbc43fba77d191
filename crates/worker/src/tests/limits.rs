//! The in-process limits, which panic when told to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use postrider_limits::{
    Admission, AdmitRequest, BreakerChange, BreakerSettings, FinishReport, Gate, GateRequest, InProcess,
    Limits, LimitsError, Release, ReleaseRequest, Settlement, Signal,
};
use postrider_model::AppId;
use tokio::sync::broadcast;

pub(super) struct TestLimits {
    inner: InProcess,
    /// Calls of `gate`, and of `finish`, that panic from now on.
    pub(super) gates_that_panic: AtomicUsize,
    pub(super) finishes_that_panic: AtomicUsize,
    /// What was reported.
    pub(super) signals: Mutex<Vec<Signal>>,
}

impl TestLimits {
    pub(super) fn new() -> Self {
        Self {
            // Short, so that a test can wait for the probe.
            inner: InProcess::new(BreakerSettings {
                open_for: Duration::from_millis(50),
                ..BreakerSettings::default()
            }),
            gates_that_panic: AtomicUsize::new(0),
            finishes_that_panic: AtomicUsize::new(0),
            signals: Mutex::default(),
        }
    }
}

fn panic_if_left(left: &AtomicUsize, what: &str) {
    let left = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    assert!(left.is_err(), "{what} panics, as told");
}

#[async_trait]
impl Limits for TestLimits {
    async fn admit(&self, batch: &[AdmitRequest]) -> Result<Vec<Admission>, LimitsError> {
        self.inner.admit(batch).await
    }

    async fn settle(&self, batch: &[Settlement]) -> Result<(), LimitsError> {
        self.inner.settle(batch).await
    }

    async fn publish_version(&self, app: AppId, version: u64) -> Result<(), LimitsError> {
        self.inner.publish_version(app, version).await
    }

    fn invalidations(&self) -> broadcast::Receiver<AppId> {
        self.inner.invalidations()
    }

    async fn gate(&self, batch: &[GateRequest]) -> Result<Vec<Gate>, LimitsError> {
        panic_if_left(&self.gates_that_panic, "a gate");
        self.inner.gate(batch).await
    }

    async fn finish(&self, batch: &[FinishReport]) -> Result<Vec<BreakerChange>, LimitsError> {
        panic_if_left(&self.finishes_that_panic, "a finish");
        self.signals
            .lock()
            .extend(batch.iter().map(|report| report.signal));
        self.inner.finish(batch).await
    }

    async fn release(&self, batch: &[ReleaseRequest]) -> Result<Vec<Release>, LimitsError> {
        self.inner.release(batch).await
    }

    async fn open_breakers(&self) -> Result<u64, LimitsError> {
        self.inner.open_breakers().await
    }

    async fn ping(&self) -> Result<(), LimitsError> {
        self.inner.ping().await
    }
}

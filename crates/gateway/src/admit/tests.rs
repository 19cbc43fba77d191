use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use postrider_limits::{
    BreakerChange, BreakerSettings, ClaimEnd, FinishReport, Gate, GateRequest, InProcess, Limits,
    LimitsError, Release, ReleaseRequest,
};
use postrider_model::AppId;
use tokio::sync::broadcast;

use super::*;

/// Counts what is settled; the rest is that of one process.
struct Counting {
    inner: InProcess,
    calls: AtomicUsize,
    settled: AtomicUsize,
}

#[async_trait]
impl Limits for Counting {
    async fn admit(&self, batch: &[AdmitRequest]) -> Result<Vec<Admission>, LimitsError> {
        self.inner.admit(batch).await
    }

    async fn settle(&self, batch: &[Settlement]) -> Result<(), LimitsError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.settled.fetch_add(batch.len(), Ordering::SeqCst);
        assert!(batch.len() <= CALL_CLAIMS_MAX);
        self.inner.settle(batch).await
    }

    async fn publish_version(&self, app: AppId, version: u64) -> Result<(), LimitsError> {
        self.inner.publish_version(app, version).await
    }

    fn invalidations(&self) -> broadcast::Receiver<AppId> {
        self.inner.invalidations()
    }

    async fn gate(&self, batch: &[GateRequest]) -> Result<Vec<Gate>, LimitsError> {
        self.inner.gate(batch).await
    }

    async fn finish(&self, batch: &[FinishReport]) -> Result<Vec<BreakerChange>, LimitsError> {
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

fn settlement() -> Settlement {
    Settlement {
        app: postrider_limits::EVERY_APP,
        key: [1; 32],
        resource: [1; 16],
        end: ClaimEnd::GivenUp,
    }
}

async fn until_settled(limits: &Counting, count: usize) {
    let patience = Duration::from_secs(10);
    let settled = async {
        while limits.settled.load(Ordering::SeqCst) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let in_time = tokio::time::timeout(patience, settled).await;
    assert!(in_time.is_ok(), "{:?}", limits.settled);
}

fn admitter() -> (Admitter, Arc<Counting>) {
    let limits = Arc::new(Counting {
        inner: InProcess::new(BreakerSettings::default()),
        calls: AtomicUsize::new(0),
        settled: AtomicUsize::new(0),
    });
    let shared: SharedLimits = limits.clone();
    let admitter = Admitter::new(shared, TaskTracker::new(), Arc::new(Metrics::default()));
    (admitter, limits)
}

#[tokio::test]
async fn settlements_of_a_while_go_together() {
    let (admitter, limits) = admitter();
    admitter.settle([settlement()]);
    until_settled(&limits, 1).await;
    for _ in 0..100 {
        admitter.settle([settlement()]);
        tokio::task::yield_now().await;
    }
    until_settled(&limits, 101).await;
    let calls = limits.calls.load(Ordering::SeqCst);
    assert!(calls < 50, "{calls} calls");
}

#[tokio::test]
async fn more_settlements_than_a_call_takes_all_go_out() {
    let (admitter, limits) = admitter();
    let count = CALL_CLAIMS_MAX * 3 + 1;
    admitter.settle((0..count).map(|_| settlement()));
    until_settled(&limits, count).await;
    assert_eq!(limits.calls.load(Ordering::SeqCst), 4);
}

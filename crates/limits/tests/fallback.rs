//! What happens while the shared state is away, and when it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_limits::*;
use postrider_model::{AppId, DeliveryId, EndpointId};
use tokio::sync::broadcast;
use uuid::Uuid;

/// The in-process state behind a switch.
struct Shared {
    state: InProcess,
    down: AtomicBool,
    calls: AtomicU32,
}

impl Shared {
    fn new() -> Arc<Self> {
        let state = InProcess::new(BreakerSettings::default());
        Arc::new(Self {
            state,
            down: AtomicBool::new(false),
            calls: AtomicU32::new(0),
        })
    }

    fn check(&self) -> Result<(), LimitsError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.down.load(Ordering::Relaxed) {
            return Err(LimitsError {
                message: "switched off".into(),
                source: None,
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Limits for Shared {
    async fn admit(&self, batch: &[AdmitRequest]) -> Result<Vec<Admission>, LimitsError> {
        self.check()?;
        self.state.admit(batch).await
    }
    async fn settle(&self, batch: &[Settlement]) -> Result<(), LimitsError> {
        self.check()?;
        self.state.settle(batch).await
    }
    async fn publish_version(&self, app: AppId, version: u64) -> Result<(), LimitsError> {
        self.check()?;
        self.state.publish_version(app, version).await
    }
    fn invalidations(&self) -> broadcast::Receiver<AppId> {
        self.state.invalidations()
    }
    async fn gate(&self, batch: &[GateRequest]) -> Result<Vec<Gate>, LimitsError> {
        self.check()?;
        self.state.gate(batch).await
    }
    async fn finish(&self, batch: &[FinishReport]) -> Result<Vec<BreakerChange>, LimitsError> {
        self.check()?;
        self.state.finish(batch).await
    }
    async fn release(&self, batch: &[ReleaseRequest]) -> Result<Vec<Release>, LimitsError> {
        self.check()?;
        self.state.release(batch).await
    }
    async fn open_breakers(&self) -> Result<u64, LimitsError> {
        self.check()?;
        self.state.open_breakers().await
    }
    async fn ping(&self) -> Result<(), LimitsError> {
        self.check()
    }
}

struct Setup {
    shared: Arc<Shared>,
    fallback: Fallback,
    observed: Arc<AtomicU32>,
    app: AppId,
}

fn setup(processes: u32) -> Setup {
    let (shared, observed) = (Shared::new(), Arc::new(AtomicU32::new(0)));
    let local = InProcess::new(BreakerSettings::default());
    let count = Arc::clone(&observed);
    let observe = move |_: &'static str| {
        count.fetch_add(1, Ordering::Relaxed);
    };
    let fallback = Fallback::new(Arc::<Shared>::clone(&shared), local, processes, observe);
    Setup {
        shared,
        fallback,
        observed,
        app: AppId::from_uuid(Uuid::now_v7()),
    }
}

impl Setup {
    async fn admit(&self, messages: u32) -> Admission {
        let quota = Some(Rate {
            per_second: 40,
            burst: 40,
        });
        let request = AdmitRequest {
            app: self.app,
            messages,
            quota,
            claims: Vec::new(),
        };
        self.fallback
            .admit(&[request])
            .await
            .expect("a fallback never fails")
            .remove(0)
    }
}

#[tokio::test(start_paused = true)]
async fn limits_are_a_share_and_versions_unknown_while_it_is_away() {
    let setup = setup(4);
    setup.fallback.publish_version(setup.app, 7).await.unwrap();
    assert_eq!(setup.admit(1).await.version, Some(7));
    assert!(!setup.fallback.degraded());

    setup.shared.down.store(true, Ordering::Relaxed);
    let admission = setup.admit(10).await;
    assert_eq!((admission.version, admission.quota_wait), (None, None));
    assert!(setup.fallback.degraded());
    assert_eq!(setup.observed.load(Ordering::Relaxed), 1);
    let wait = setup
        .admit(1)
        .await
        .quota_wait
        .expect("a quarter of 40 is used up");
    assert_eq!(wait, Duration::from_millis(100));
    assert!(setup.fallback.ping().await.is_err(), "readiness must see it");
}

#[tokio::test(start_paused = true)]
async fn a_dead_one_is_tried_rarely_and_found_again() {
    let setup = setup(1);
    setup.shared.down.store(true, Ordering::Relaxed);
    for _ in 0..100 {
        setup.admit(0).await;
    }
    assert_eq!(setup.shared.calls.load(Ordering::Relaxed), 3);
    assert_eq!(setup.observed.load(Ordering::Relaxed), 100);
    tokio::time::sleep(Duration::from_millis(501)).await;
    for _ in 0..100 {
        setup.admit(0).await;
    }
    assert_eq!(setup.shared.calls.load(Ordering::Relaxed), 4, "one more try");

    setup.shared.down.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(501)).await;
    for _ in 0..100 {
        setup.admit(0).await;
    }
    assert_eq!(
        setup.shared.calls.load(Ordering::Relaxed),
        104,
        "all of them again"
    );
    tokio::time::sleep(Duration::from_millis(501)).await;
    setup.admit(0).await;
    assert!(!setup.fallback.degraded());
}

#[tokio::test(start_paused = true)]
async fn a_version_published_meanwhile_wakes_this_process_and_the_others_later() {
    let setup = setup(1);
    let (mut own, mut others) = (setup.fallback.invalidations(), setup.shared.invalidations());
    setup.shared.down.store(true, Ordering::Relaxed);
    setup.fallback.publish_version(setup.app, 5).await.unwrap();
    assert_eq!(own.recv().await.unwrap(), setup.app);
    assert!(others.try_recv().is_err());
    setup.shared.down.store(false, Ordering::Relaxed);
    setup.admit(0).await;
    assert_eq!(others.recv().await.unwrap(), setup.app);
    assert_eq!(setup.admit(0).await.version, Some(5));
}

#[tokio::test(start_paused = true)]
async fn claims_and_done_marks_fail_open_then_hold_locally() {
    let setup = setup(1);
    let claim = |number: u8| ClaimRequest {
        key: [1; 32],
        resource: [number; 16],
        fingerprint: [2; 32],
        ttl: Duration::from_secs(60),
        pending_ttl: Duration::from_secs(60),
    };
    let admit = |number| AdmitRequest {
        app: setup.app,
        messages: 1,
        quota: None,
        claims: vec![claim(number)],
    };
    let answer = async |number| {
        setup
            .fallback
            .admit(&[admit(number)])
            .await
            .unwrap()
            .remove(0)
            .claims
            .remove(0)
    };
    assert_eq!(answer(1).await, ClaimAnswer::Claimed);
    setup.shared.down.store(true, Ordering::Relaxed);
    assert_eq!(answer(2).await, ClaimAnswer::Claimed, "open");
    assert!(
        matches!(answer(3).await, ClaimAnswer::Held { resource, .. } if resource == [2; 16]),
        "locally"
    );

    let (endpoint, delivery) = (
        EndpointId::from_uuid(Uuid::now_v7()),
        DeliveryId::from_uuid(Uuid::now_v7()),
    );
    let (app, run, mark) = (setup.app, 0, Some(Bytes::from_static(b"done")));
    let report = FinishReport {
        app,
        endpoint,
        delivery,
        run,
        probe: false,
        mark,
        signal: Signal::Success,
    };
    setup.fallback.finish(&[report]).await.unwrap();
    let request = GateRequest {
        app,
        endpoint,
        delivery,
        run,
        rate: None,
        released: false,
    };
    let gate = setup.fallback.gate(&[request]).await.unwrap().remove(0);
    assert_eq!(gate.verdict, Verdict::Done(Bytes::from_static(b"done")));
}

#[tokio::test(start_paused = true)]
async fn one_that_refuses_some_calls_is_not_back_at_each_that_it_answers() {
    let setup = setup(1);
    for call in 0..1_000 {
        setup.shared.down.store(call % 2 == 0, Ordering::Relaxed);
        setup.admit(0).await;
        assert!(setup.fallback.degraded(), "after call {call}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    setup.admit(0).await;
    assert!(!setup.fallback.degraded());
}

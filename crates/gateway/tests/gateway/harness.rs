//! A gateway with its surroundings, and short ways to talk to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, to_bytes};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use parking_lot::Mutex;
use postrider_broker::{
    Broker, BrokerError, GatherSettings, Health, JobPublisher, JournalPublisher, PublishError, Queue,
    QueueLook, Subscription,
};
use postrider_egress::Policy;
use postrider_gateway::{Deps, Gateway, Metrics, Settings};
use postrider_limits::{BreakerSettings, InProcess, SharedLimits};
use postrider_model::{Accepted, AppId, Job, Outcome, Record};
use postrider_secrets::Keyring;
use postrider_store::SharedStore;
use postrider_store_sqlite::SqliteStore;
use postrider_wire::Frame;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt as _;

pub(crate) const ADMIN: &str = "the-admin-key";

/// How a publication fails.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fail {
    Journal(PublishError),
    Jobs(PublishError),
    /// The queues of jobs are full after so many frames more.
    JobsAfter(usize),
    All(PublishError),
    /// As before, but so late.
    Late(Duration, PublishError),
    /// Not at all, but it takes so long.
    Slow(Duration),
}

pub(crate) struct TestBroker {
    pub(crate) durable: bool,
    pub(crate) health: watch::Sender<Health>,
    pub(crate) journal_depth: AtomicU64,
    pub(crate) fail: Mutex<Option<Fail>>,
    /// Whether journal records reach the store.
    pub(crate) recording: AtomicBool,
    store: SharedStore,
    records: Mutex<Vec<Record>>,
    jobs: Mutex<Vec<(Queue, Job)>>,
}

#[async_trait]
impl Broker for TestBroker {
    async fn publish(&self, queue: Queue, frame: Bytes) -> Result<(), PublishError> {
        let fail = *self.fail.lock();
        match (fail, queue) {
            (Some(Fail::Journal(error)), Queue::Journal) | (Some(Fail::All(error)), _) => return Err(error),
            (Some(Fail::Late(after, error)), _) => {
                tokio::time::sleep(after).await;
                return Err(error);
            }
            (Some(Fail::Slow(time)), _) => tokio::time::sleep(time).await,
            (Some(Fail::Jobs(error)), Queue::Deliver(_)) => return Err(error),
            (Some(Fail::JobsAfter(0)), Queue::Deliver(_)) => return Err(PublishError::Full),
            (Some(Fail::JobsAfter(frames)), Queue::Deliver(_)) => {
                *self.fail.lock() = Some(Fail::JobsAfter(frames - 1));
            }
            _ => {}
        }
        match postrider_wire::decode(frame).expect("a frame of ours") {
            Frame::Journal(records) => {
                if self.recording.load(Ordering::SeqCst) {
                    let recorded = self.store.record(&records).await;
                    recorded.map_err(|_| PublishError::Refused)?;
                }
                self.records.lock().extend(records);
            }
            Frame::Jobs(jobs) => self.jobs.lock().extend(jobs.into_iter().map(|job| (queue, job))),
        }
        Ok(())
    }

    async fn subscribe(&self, _queue: Queue, _prefetch: u16) -> Result<Subscription, BrokerError> {
        unreachable!("the gateway does not consume")
    }

    async fn look(&self, queue: Queue) -> Result<QueueLook, BrokerError> {
        let depth = match queue {
            Queue::Journal => self.journal_depth.load(Ordering::SeqCst),
            _ => 0,
        };
        Ok(QueueLook { depth, consumers: 1 })
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn is_durable(&self) -> bool {
        self.durable
    }

    async fn close(&self) {}
}

impl TestBroker {
    pub(crate) fn accepted(&self) -> Vec<Accepted> {
        let records = self.records.lock();
        let accepted = records.iter().filter_map(|record| match record {
            Record::Accepted(accepted) => Some(accepted.clone()),
            Record::Outcome(_) => None,
        });
        accepted.collect()
    }

    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        let records = self.records.lock();
        let outcomes = records.iter().filter_map(|record| match record {
            Record::Outcome(outcome) => Some(outcome.as_ref().clone()),
            Record::Accepted(_) => None,
        });
        outcomes.collect()
    }

    pub(crate) fn jobs(&self) -> Vec<Job> {
        self.jobs.lock().iter().map(|(_, job)| job.clone()).collect()
    }

    pub(crate) fn queues(&self) -> Vec<Queue> {
        self.jobs.lock().iter().map(|(queue, _)| *queue).collect()
    }
}

/// Bounds of the lanes in which what is published waits for its queue.
#[derive(Clone, Copy, Default)]
pub(crate) struct Lanes {
    pub(crate) jobs: GatherSettings,
    pub(crate) journal: GatherSettings,
}

pub(crate) struct Harness {
    pub(crate) router: Router,
    pub(crate) gateway: Gateway,
    pub(crate) store: SharedStore,
    pub(crate) broker: Arc<TestBroker>,
    pub(crate) limits: SharedLimits,
    pub(crate) telemetry: Arc<postrider_telemetry::Metrics>,
    _dir: Option<tempfile::TempDir>,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// As it came.
    pub(crate) text: String,
    pub(crate) body: Value,
}

impl Harness {
    /// Embedded, default settings.
    pub(crate) async fn new() -> Self {
        Self::with(false, Settings::default()).await
    }

    pub(crate) async fn with(durable: bool, settings: Settings) -> Self {
        Self::with_lanes(Lanes::default(), durable, settings).await
    }

    /// What is published waits for its queue in lanes with these bounds.
    pub(crate) async fn with_lanes(lanes: Lanes, durable: bool, settings: Settings) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let keyring = Arc::new(Keyring::generate().expect("randomness").0);
        let settings_of_store = postrider_store_sqlite::Settings::new(keyring);
        let store = SqliteStore::open(dir.path().join("test.db"), settings_of_store).expect("a store");
        let store: SharedStore = store;
        store.migrate().await.expect("a schema");
        let mut harness = Self::over_with(store, lanes, durable, settings);
        harness._dir = Some(dir);
        harness.until_ready().await;
        harness
    }

    /// A gateway that starts over a store that is there: nothing else is left of the one before.
    pub(crate) fn over(store: SharedStore, durable: bool, settings: Settings) -> Self {
        Self::over_with(store, Lanes::default(), durable, settings)
    }

    fn over_with(store: SharedStore, lanes: Lanes, durable: bool, mut settings: Settings) -> Self {
        settings.admin_key = Some(SecretString::from(ADMIN));
        let broker = Arc::new(TestBroker {
            durable,
            health: watch::channel(Health::Up).0,
            journal_depth: AtomicU64::new(0),
            fail: Mutex::new(None),
            recording: AtomicBool::new(true),
            store: Arc::clone(&store),
            records: Mutex::default(),
            jobs: Mutex::default(),
        });
        let shared: Arc<dyn Broker> = broker.clone();
        let limits: SharedLimits = Arc::new(InProcess::new(BreakerSettings::default()));
        let telemetry = postrider_telemetry::Metrics::new();
        let deps = Deps {
            store: Arc::clone(&store),
            limits: Arc::clone(&limits),
            jobs: JobPublisher::new(Arc::clone(&shared), lanes.jobs, settings.shards),
            journal: JournalPublisher::new(Arc::clone(&shared), lanes.journal),
            broker: shared,
            policy: Policy::default(),
            metrics: Arc::new(Metrics::default()),
            telemetry: Arc::clone(&telemetry),
            tracer: None,
        };
        let gateway = Gateway::new(settings, deps);
        Self {
            router: gateway.router(),
            gateway,
            store,
            broker,
            limits,
            telemetry,
            _dir: None,
        }
    }

    pub(crate) async fn until_ready(&self) {
        for _ in 0..500 {
            if self.get("/api/v1/health").await.status == StatusCode::NO_CONTENT {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the gateway did not get ready");
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, 32 << 20).await.expect("a body");
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
            body,
        }
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", format!("Bearer {ADMIN}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body).expect("a request")).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &[], Body::empty()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, &[], Body::empty()).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, &[], json_body(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, &[], json_body(&body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PATCH, path, &[], json_body(&body)).await
    }

    pub(crate) async fn post_with_key(&self, path: &str, key: &str, body: Value) -> Answer {
        self.call(Method::POST, path, &[("idempotency-key", key)], json_body(&body))
            .await
    }

    /// An application of the uid `acme`, with one endpoint of the uid `main`.
    pub(crate) async fn acme(&self) -> AppId {
        let made = self
            .post("/api/v1/app", json!({"name": "Acme", "uid": "acme"}))
            .await;
        let app = made.is(StatusCode::CREATED);
        self.endpoint(json!({"url": "https://example.com/hook", "uid": "main"}))
            .await;
        text(&app, "id").parse().expect("an application's id")
    }

    pub(crate) async fn endpoint(&self, input: Value) -> Value {
        self.post("/api/v1/app/acme/endpoint", input)
            .await
            .is(StatusCode::CREATED)
    }

    pub(crate) async fn message(&self, input: Value) -> Answer {
        self.post("/api/v1/app/acme/msg", input).await
    }
}

impl Answer {
    /// The body, once the status is as expected.
    pub(crate) fn is(self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.headers.get("retry-after")?.to_str().ok()?.parse().ok()
    }
}

pub(crate) fn json_body(value: &Value) -> Body {
    Body::from(value.to_string())
}

pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no text `{name}` in {value}"))
}

/// How often an application's configuration was read.
pub(crate) fn reads(harness: &Harness) -> u64 {
    let metrics = harness.telemetry.render();
    let mut lines = metrics.lines();
    let line = lines.find_map(|line| line.strip_prefix("postrider_config_reloads_total "));
    line.and_then(|count| count.parse().ok()).expect("a metric")
}

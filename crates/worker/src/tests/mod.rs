//! The worker as a whole: real queues and store in this process, a real receiver, limits that can be made to panic and
//! a journal that can be made to refuse.

mod broker;
mod dispatch;
mod drain;
mod limits;
mod outcomes;
mod panics;
mod suspects;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use postrider_broker::{Broker, GatherSettings, JournalPublisher, Queue};
use postrider_model::{
    AppId, Application, DeliveryId, Endpoint, EndpointId, EndpointSecret, ExhaustedPolicy, HeaderNames, Job,
    Message, MessageId, Outcome, Record, Trigger, UnixMillis,
};
use postrider_store::SharedStore;
use postrider_store_sqlite::SqliteStore;
use postrider_telemetry::Metrics;
use postrider_testkit::receiver::Receiver;
use postrider_wire::Frame;
use secrecy::SecretString;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::duty::{Duty, key};
use crate::envelope;
use crate::finish;
use crate::run::Context;
use crate::{Deps, Settings};
use broker::TestBroker;
use limits::TestLimits;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn application(id: AppId) -> Application {
    Application {
        id,
        uid: None,
        name: "a tenant".to_owned(),
        throttle_rate: None,
        propagate_traceparent: false,
        metadata: BTreeMap::new(),
        created_at: UnixMillis(1),
        updated_at: UnixMillis(1),
    }
}

struct World {
    broker: Arc<TestBroker>,
    store: SharedStore,
    limits: Arc<TestLimits>,
    metrics: Arc<Metrics>,
    receiver: Receiver,
    app: AppId,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("postrider.db");
        let (keyring, _) = postrider_secrets::Keyring::generate().expect("randomness");
        let settings = postrider_store_sqlite::Settings::new(Arc::new(keyring));
        let store: SharedStore = tokio::task::spawn_blocking(move || SqliteStore::open(path, settings))
            .await
            .expect("no panic")
            .expect("the store opens");
        store.migrate().await.expect("a schema");
        let app = AppId::generate(UnixMillis::now(), &mut rand::rng());
        store.create_app(&application(app)).await.expect("an application");
        let broker = Arc::new(TestBroker::new());
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(keep_outcomes(broker.clone(), outcomes.clone()));
        Self {
            broker,
            store,
            limits: Arc::new(TestLimits::new()),
            metrics: Metrics::new(),
            receiver: Receiver::start().await.expect("a receiver"),
            app,
            outcomes,
            _directory: directory,
        }
    }

    fn settings() -> Settings {
        Settings {
            shards: 1,
            drain_timeout: PATIENCE,
            ..Settings::default()
        }
    }

    fn deps(&self) -> Deps {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let policy = postrider_egress::Policy::new(vec![loopback.into()], false);
        let client = postrider_egress::Client::new(postrider_egress::Settings::default(), policy.clone());
        Deps {
            broker: self.broker.clone(),
            journal: JournalPublisher::new(self.broker.clone(), GatherSettings::default()),
            store: self.store.clone(),
            limits: self.limits.clone(),
            client: client.expect("default settings"),
            policy,
            metrics: self.metrics.clone(),
            tracer: None,
        }
    }

    /// A worker that consumes nothing by itself.
    fn context(&self, settings: Settings) -> Arc<Context> {
        let (context, queue) = Context::new(settings, self.deps());
        tokio::spawn(finish::batch::run(
            context.clone(),
            queue,
            CancellationToken::new(),
        ));
        context
    }

    /// Waits until nothing is at work.
    async fn all_settled(&self, context: &Context) {
        context.tasks.close();
        let settled = tokio::time::timeout(PATIENCE, context.tasks.wait());
        settled.await.expect("all ends");
        assert_eq!(context.active.len(), 0);
    }

    /// A stored endpoint at this path of the receiver.
    async fn endpoint(&self, path: &str, change: impl FnOnce(&mut Endpoint)) -> EndpointId {
        let mut endpoint = Endpoint {
            id: EndpointId::generate(UnixMillis::now(), &mut rand::rng()),
            app: self.app,
            uid: None,
            url: self.receiver.url(path),
            description: String::new(),
            event_types: Vec::new(),
            channels: Vec::new(),
            disabled: false,
            paused: false,
            throttle_rate: None,
            ordered: false,
            on_exhausted: ExhaustedPolicy::Skip,
            header_names: HeaderNames::Standard,
            timeout: None,
            retry_schedule: None,
            headers: BTreeMap::new(),
            secrets: vec![EndpointSecret {
                text: SecretString::from("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"),
                expires_at: None,
            }],
            metadata: BTreeMap::new(),
            created_at: UnixMillis(1),
            updated_at: UnixMillis(1),
        };
        change(&mut endpoint);
        let version = self.store.create_endpoint(&endpoint).await;
        assert!(version.expect("the store").is_some(), "the application is there");
        endpoint.id
    }

    fn job(&self, endpoint: EndpointId) -> Job {
        let now = UnixMillis::now();
        let message = Message {
            id: MessageId::generate(now, &mut rand::rng()),
            app: self.app,
            event_type: "a".to_owned(),
            event_id: None,
            channels: Vec::new(),
            content_type: "application/json".to_owned(),
            payload: Bytes::from_static(b"{}"),
            accepted_at: now,
            payload_retention_days: None,
            traceparent: None,
        };
        Job {
            delivery: DeliveryId::derive(message.id, endpoint),
            endpoint,
            message: Arc::new(message),
            run: 0,
            attempts: 0,
            trigger: Trigger::Scheduled,
            probe: false,
            has_token: false,
            ordered: false,
            lease_until: None,
        }
    }

    /// Publishes a frame with a delivery to this endpoint.
    async fn publish(&self, queue: Queue, endpoint: EndpointId) {
        let frame = postrider_wire::encode_jobs(&[self.job(endpoint)]);
        self.broker.publish(queue, frame).await.expect("room");
    }

    /// Publishes a frame and sends its jobs on, as the intake would.
    async fn dispatch(&self, context: &Arc<Context>, jobs: Vec<Job>) {
        let queue = Queue::Deliver(0);
        let frame = postrider_wire::encode_jobs(&jobs);
        self.broker.publish(queue, frame).await.expect("room");
        let mut subscription = self.broker.subscribe(queue, 1).await.expect("a queue");
        let incoming = subscription.next().await.expect("the frame");
        let shares = envelope::shares(incoming.receipt, jobs.len(), Vec::new(), Arc::default());
        for (job, share) in jobs.iter().zip(shares) {
            assert!(context.active.begin(key(job), share), "it is new");
        }
        let duties = jobs.iter().map(|job| Duty::new(context, job)).collect();
        crate::dispatch::dispatch(context, jobs, duties).await;
    }

    /// The outcome of each delivery, once all are there.
    async fn outcomes(&self, count: usize) -> Vec<Outcome> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let outcomes = self.outcomes.lock().clone();
            if outcomes.len() >= count {
                return outcomes;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{} of {count} outcomes: {outcomes:?}",
                outcomes.len()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Takes the journal's outcomes, as the recorder would.
async fn keep_outcomes(broker: Arc<TestBroker>, outcomes: Arc<Mutex<Vec<Outcome>>>) {
    let mut journal = broker.subscribe(Queue::Journal, 64).await.expect("a queue");
    while let Some(incoming) = journal.next().await {
        if let Ok(Frame::Journal(records)) = postrider_wire::decode(incoming.frame) {
            outcomes
                .lock()
                .extend(records.into_iter().filter_map(|record| match record {
                    Record::Outcome(outcome) => Some(*outcome),
                    Record::Accepted(_) => None,
                }));
        }
        incoming.receipt.acknowledge().await;
    }
}

/// Waits until it is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

/// Waits for the end of a worker that was told to stop.
async fn ended(worker: JoinHandle<()>) {
    tokio::time::timeout(PATIENCE, worker)
        .await
        .expect("the worker ends")
        .expect("in order");
}

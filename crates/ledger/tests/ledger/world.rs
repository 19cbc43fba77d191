//! A ledger with an application and an endpoint, and the moves that tests are made of.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use postrider_broker::{
    Broker, GatherSettings, InProcess, InProcessSettings, JobPublisher, JournalPublisher, Queue, Subscription,
};
use postrider_ledger::{Deps, Settings};
use postrider_limits::{BreakerSettings, SharedLimits};
use postrider_model::{
    Accepted, AppId, Application, CancelReason, DeferReason, DeliveryId, Disposition, Endpoint, EndpointId,
    ExhaustedPolicy, HeaderNames, Job, Message, MessageId, NewDelivery, Next, Outcome, Record, Trigger,
    UnixMillis,
};
use postrider_secrets::Keyring;
use postrider_store::{ConfigStore, SharedStore, UpkeepStore};
use postrider_store_sqlite::SqliteStore;
use postrider_telemetry::Metrics;
use postrider_wire::Frame;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How long what must happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again until the answer is there.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

pub(crate) struct World {
    pub(crate) app: AppId,
    pub(crate) endpoint: EndpointId,
    pub(crate) store: SharedStore,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) limits: SharedLimits,
    pub(crate) journal: JournalPublisher,
    pub(crate) metrics: Arc<Metrics>,
    path: PathBuf,
    _directory: TempDir,
    _ledger: AbortOnDropHandle<()>,
}

impl World {
    /// Starts a ledger with one shard.
    pub(crate) async fn new(settings: Settings) -> Self {
        Self::with_queues(settings, InProcessSettings::default(), GatherSettings::default()).await
    }

    /// As [`World::new`], with queues so large and jobs gathered so.
    pub(crate) async fn with_queues(
        settings: Settings,
        queues: InProcessSettings,
        gather: GatherSettings,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let keyring = Arc::new(Keyring::generate().unwrap().0);
        let store = SqliteStore::open(&path, postrider_store_sqlite::Settings::new(keyring)).unwrap();
        store.migrate().await.unwrap();
        let broker: Arc<dyn Broker> = InProcess::new(queues);
        let limits: SharedLimits = Arc::new(postrider_limits::InProcess::new(BreakerSettings {
            failures: 1,
            open_for: Duration::from_millis(10),
            ..BreakerSettings::default()
        }));
        let metrics = Metrics::new();
        let journal = JournalPublisher::new(broker.clone(), GatherSettings::default());
        let (app, endpoint) = configure(&store).await;
        let deps = Deps {
            broker: broker.clone(),
            jobs: JobPublisher::new(broker.clone(), gather, 1),
            journal: journal.clone(),
            store: store.clone(),
            limits: limits.clone(),
            metrics: metrics.clone(),
        };
        let ledger = tokio::spawn(postrider_ledger::run(settings, deps, CancellationToken::new()));
        Self {
            app,
            endpoint,
            store,
            broker,
            limits,
            journal,
            metrics,
            path,
            _directory: directory,
            _ledger: AbortOnDropHandle::new(ledger),
        }
    }

    /// A second connection to the store's file.
    pub(crate) fn sql(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(&self.path).unwrap()
    }

    /// A metric without labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let page = self.metrics.render();
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {page}"))
            .parse()
            .unwrap()
    }

    /// A message made `age` ago.
    pub(crate) fn message(&self, age: Duration, event_type: &str) -> Arc<Message> {
        let at = UnixMillis::now().minus(age);
        Arc::new(Message {
            id: MessageId::generate(at, &mut rand::rng()),
            app: self.app,
            event_type: event_type.to_owned(),
            event_id: None,
            channels: vec![],
            content_type: "application/json".to_owned(),
            payload: b"{}".to_vec().into(),
            accepted_at: at,
            payload_retention_days: None,
            traceparent: None,
        })
    }

    pub(crate) fn accepted(&self, message: &Arc<Message>, disposition: Disposition) -> Record {
        Record::Accepted(Accepted {
            message: message.clone(),
            deliveries: vec![NewDelivery {
                id: DeliveryId::derive(message.id, self.endpoint),
                endpoint: self.endpoint,
                disposition,
            }],
            trigger: Trigger::Scheduled,
            claims: vec![],
        })
    }

    /// An outcome without an attempt, made now.
    pub(crate) fn outcome(&self, message: &Message, run: u32, next: Next) -> Outcome {
        Outcome {
            delivery: DeliveryId::derive(message.id, self.endpoint),
            message: message.id,
            endpoint: self.endpoint,
            app: self.app,
            run,
            attempts: 0,
            trigger: Trigger::Scheduled,
            at: UnixMillis::now(),
            attempt: None,
            next,
        }
    }

    /// A deferral that is due at once.
    pub(crate) fn deferred(&self, message: &Message) -> Record {
        let next = Next::Deferred {
            reason: DeferReason::Rate,
            delay: Duration::ZERO,
        };
        Record::Outcome(Box::new(self.outcome(message, 0, next)))
    }

    pub(crate) fn parked(&self, message: &Message) -> Record {
        let next = Next::Cancelled(CancelReason::Parked);
        Record::Outcome(Box::new(self.outcome(message, 0, next)))
    }

    /// What the scheduler hands out.
    pub(crate) async fn released(&self) -> Subscription {
        self.broker.subscribe(Queue::Retry(0), 64).await.unwrap()
    }
}

/// Takes the next frame of jobs.
pub(crate) async fn next_jobs(released: &mut Subscription) -> Vec<Job> {
    let incoming = tokio::time::timeout(PATIENCE, released.next()).await;
    let incoming = incoming.expect("jobs come in time").expect("the broker is open");
    let Ok(Frame::Jobs(jobs)) = postrider_wire::decode(incoming.frame.clone()) else {
        panic!("no frame of jobs")
    };
    incoming.receipt.acknowledge().await;
    jobs
}

async fn configure(store: &Arc<SqliteStore>) -> (AppId, EndpointId) {
    let now = UnixMillis::now();
    let app = AppId::generate(now, &mut rand::rng());
    let application = Application {
        id: app,
        uid: None,
        name: "a tenant".to_owned(),
        throttle_rate: None,
        propagate_traceparent: false,
        metadata: std::collections::BTreeMap::new(),
        created_at: now,
        updated_at: now,
    };
    store.create_app(&application).await.unwrap();
    let endpoint = Endpoint {
        id: EndpointId::generate(now, &mut rand::rng()),
        app,
        uid: None,
        url: "https://example.com/".to_owned(),
        description: String::new(),
        event_types: vec![],
        channels: vec![],
        disabled: false,
        paused: false,
        throttle_rate: None,
        ordered: false,
        on_exhausted: ExhaustedPolicy::Skip,
        header_names: HeaderNames::Standard,
        timeout: None,
        retry_schedule: None,
        headers: std::collections::BTreeMap::new(),
        secrets: vec![],
        metadata: std::collections::BTreeMap::new(),
        created_at: now,
        updated_at: now,
    };
    store.create_endpoint(&endpoint).await.unwrap();
    (app, endpoint.id)
}

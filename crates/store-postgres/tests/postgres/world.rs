//! A store on a fresh database, with an application, an endpoint, and makers of records.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_model::{
    Accepted, AppId, AppSnapshot, Application, Attempt, AttemptClass, AttemptId, DeliveryId, Disposition,
    Endpoint, EndpointId, EndpointSecret, ExhaustedPolicy, HeaderNames, Message, MessageId, NewDelivery,
    Next, Outcome, Record, Trigger, UnixMillis,
};
use postrider_secrets::Keyring;
use postrider_store::{AppRef, ConfigStore, Page, UpkeepStore};
use postrider_store_postgres::{PostgresStore, Settings};
use postrider_testkit::services::PostgresDatabase;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct World {
    pub(crate) store: Arc<PostgresStore>,
    pub(crate) app: AppId,
    pub(crate) endpoint: EndpointId,
    pub(crate) database: PostgresDatabase,
    pub(crate) keyring: Arc<Keyring>,
}

pub(crate) fn keyring() -> Arc<Keyring> {
    Arc::new(Keyring::generate().unwrap().0)
}

pub(crate) fn open(url: &str, keyring: &Arc<Keyring>) -> Arc<PostgresStore> {
    PostgresStore::connect(Settings::new(url.into(), keyring.clone())).unwrap()
}

pub(crate) fn page<C>(after: Option<C>, backwards: bool, descending: bool, limit: u32) -> Page<C> {
    Page {
        after,
        backwards,
        descending,
        limit,
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let database = PostgresDatabase::create().await.unwrap();
        let keyring = keyring();
        let store = open(database.url(), &keyring);
        store.migrate().await.unwrap();
        let (app, endpoint) = configure(&store).await;
        Self {
            store,
            app,
            endpoint,
            database,
            keyring,
        }
    }

    /// Another process' view of the same store.
    pub(crate) fn again(&self) -> Arc<PostgresStore> {
        open(self.database.url(), &self.keyring)
    }

    /// The application's configuration.
    pub(crate) async fn snapshot(&self) -> AppSnapshot {
        let found = self.store.snapshot(&AppRef::Id(self.app)).await;
        found.unwrap().unwrap()
    }

    /// How many rows a query of one number finds.
    pub(crate) async fn number(&self, statement: &'static str) -> i64 {
        let pool = sqlx::PgPool::connect(self.database.url()).await.unwrap();
        sqlx::query_scalar(statement).fetch_one(&pool).await.unwrap()
    }

    pub(crate) fn message(&self, at: UnixMillis) -> Arc<Message> {
        Arc::new(Message {
            id: MessageId::generate(at, &mut rand::rng()),
            app: self.app,
            event_type: "invoice.paid".into(),
            event_id: None,
            channels: vec![],
            content_type: "application/json".into(),
            payload: Bytes::from_static(b"{\"amount\":1}"),
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

    pub(crate) fn outcome(&self, message: &Message, run: u32, attempts: u32, next: Next) -> Record {
        let success = next == Next::Delivered;
        let at = message.id.created_at();
        let attempt = Attempt {
            id: AttemptId::generate(at, &mut rand::rng()),
            started_at: at,
            duration: Duration::from_millis(12),
            class: if success {
                AttemptClass::Success
            } else {
                AttemptClass::Status
            },
            status: if success { 204 } else { 500 },
            response: Bytes::from_static(b"\0\xff"),
            url: "https://example.test/hook".into(),
        };
        Record::Outcome(Box::new(Outcome {
            delivery: DeliveryId::derive(message.id, self.endpoint),
            message: message.id,
            endpoint: self.endpoint,
            app: self.app,
            run,
            attempts,
            trigger: Trigger::Scheduled,
            at,
            attempt: Some(attempt),
            next,
        }))
    }
}

pub(crate) async fn configure(store: &PostgresStore) -> (AppId, EndpointId) {
    let now = UnixMillis::now();
    let app = Application {
        id: AppId::generate(now, &mut rand::rng()),
        uid: None,
        name: "shop".into(),
        throttle_rate: None,
        propagate_traceparent: false,
        metadata: BTreeMap::new(),
        created_at: now,
        updated_at: now,
    };
    store.create_app(&app).await.unwrap();
    let endpoint = endpoint(app.id);
    store.create_endpoint(&endpoint).await.unwrap().unwrap();
    (app.id, endpoint.id)
}

pub(crate) fn endpoint(app: AppId) -> Endpoint {
    let now = UnixMillis::now();
    Endpoint {
        id: EndpointId::generate(now, &mut rand::rng()),
        app,
        uid: None,
        url: "https://example.test/hook".into(),
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
        headers: BTreeMap::from([("authorization".to_owned(), "Bearer hunter2".into())]),
        secrets: vec![EndpointSecret {
            text: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(),
            expires_at: None,
        }],
        metadata: BTreeMap::new(),
        created_at: now,
        updated_at: now,
    }
}

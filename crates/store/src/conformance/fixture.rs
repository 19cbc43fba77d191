//! A tenant with endpoints and messages, and the few moves that checks are made of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use postrider_model::{
    Accepted, AppId, Application, Attempt, AttemptClass, AttemptId, DeferReason, DeliveryId, DeliveryState,
    Disposition, Endpoint, EndpointId, EndpointSecret, ExhaustedPolicy, HeaderNames, Job, Message, MessageId,
    NewDelivery, Next, Outcome, Record, Trigger, UnixMillis,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use secrecy::SecretString;

use super::PATIENCE;
use crate::{
    DeliveryRow, DueEndpoint, EndpointCounts, Grant, LeasedJob, Page, RecordReport, SharedStore, StoreError,
    TimeRange,
};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) const WAITING: Disposition = Disposition::Waiting(DeferReason::Backlog);
pub(super) const FAILED: Next = Next::Exhausted { gone: false };

/// A retry long after the check has ended.
pub(super) const RETRY: Next = Next::Retry { delay: HOUR };

pub(super) struct World {
    pub(super) store: SharedStore,
    pub(super) app: AppId,
    rng: Mutex<StdRng>,
}

pub(super) fn must<T>(result: Result<T, StoreError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("the store failed: {error:?}"),
    }
}

/// Asks again until the answer is there; `what` says what never came.
pub(super) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The first page of a list, oldest first.
pub(super) fn first<Cursor>(limit: u32) -> Page<Cursor> {
    Page {
        after: None,
        backwards: false,
        descending: false,
        limit,
    }
}

pub(super) fn grant(endpoint: EndpointId, count: u32) -> Grant {
    Grant {
        endpoint,
        count,
        probe: false,
        has_token: false,
        ordered: false,
        not_before: Duration::ZERO,
        is_full: false,
    }
}

impl World {
    /// A world of one application.
    pub(super) async fn new(store: SharedStore) -> Self {
        let mut rng = StdRng::seed_from_u64(11);
        let now = UnixMillis::now();
        let app = AppId::generate(now, &mut rng);
        let world = Self {
            store,
            app,
            rng: Mutex::new(rng),
        };
        must(world.store.create_app(&world.application(app)).await);
        world
    }

    pub(super) fn application(&self, id: AppId) -> Application {
        let now = UnixMillis::now();
        Application {
            id,
            uid: None,
            name: "a tenant".into(),
            throttle_rate: None,
            propagate_traceparent: false,
            metadata: BTreeMap::new(),
            created_at: now,
            updated_at: now,
        }
    }

    /// Any id.
    pub(super) fn id<T>(&self, make: impl FnOnce(UnixMillis, &mut StdRng) -> T) -> T {
        make(UnixMillis::now(), &mut self.rng.lock())
    }

    /// An endpoint that is not stored yet.
    pub(super) fn draft(&self) -> Endpoint {
        let now = UnixMillis::now();
        Endpoint {
            id: self.id(EndpointId::generate),
            app: self.app,
            uid: None,
            url: "https://example.com/hook".into(),
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
            headers: BTreeMap::new(),
            secrets: vec![EndpointSecret {
                text: SecretString::from("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"),
                expires_at: None,
            }],
            metadata: BTreeMap::new(),
            created_at: now,
            updated_at: now,
        }
    }

    /// A stored endpoint.
    pub(super) async fn endpoint(&self, change: impl FnOnce(&mut Endpoint)) -> Endpoint {
        let mut endpoint = self.draft();
        change(&mut endpoint);
        let version = must(self.store.create_endpoint(&endpoint).await);
        assert!(version.is_some(), "the application is there");
        endpoint
    }

    /// A message made `age` ago.
    pub(super) fn message_aged(&self, age: Duration, change: impl FnOnce(&mut Message)) -> Arc<Message> {
        let at = UnixMillis::now().minus(age);
        let mut message = Message {
            id: MessageId::generate(at, &mut *self.rng.lock()),
            app: self.app,
            event_type: "invoice.paid".into(),
            event_id: None,
            channels: vec![],
            content_type: "application/json".into(),
            payload: Bytes::from_static(b"{\"n\":1}"),
            accepted_at: at,
            payload_retention_days: None,
            traceparent: None,
        };
        change(&mut message);
        Arc::new(message)
    }

    pub(super) fn message(&self) -> Arc<Message> {
        self.message_aged(Duration::ZERO, |_| {})
    }

    pub(super) fn accepted(
        &self,
        message: &Arc<Message>,
        endpoints: &[EndpointId],
        disposition: Disposition,
    ) -> Record {
        let deliveries = endpoints
            .iter()
            .map(|endpoint| NewDelivery {
                id: DeliveryId::derive(message.id, *endpoint),
                endpoint: *endpoint,
                disposition,
            })
            .collect();
        Record::Accepted(Accepted {
            message: message.clone(),
            deliveries,
            trigger: Trigger::Scheduled,
            claims: vec![],
        })
    }

    /// A delivery by hand of a message that is on record.
    pub(super) fn by_hand(&self, message: &Arc<Message>, endpoint: EndpointId, nonce: &[u8]) -> Record {
        let delivery = NewDelivery {
            id: DeliveryId::derive_again(message.id, endpoint, nonce),
            endpoint,
            disposition: Disposition::Waiting(DeferReason::Manual),
        };
        Record::Accepted(Accepted {
            message: message.clone(),
            deliveries: vec![delivery],
            trigger: Trigger::Manual,
            claims: vec![],
        })
    }

    /// An outcome; the attempts that it tells of are its run's number and one.
    pub(super) fn outcome(&self, message: &Message, endpoint: EndpointId, run: u32, next: Next) -> Outcome {
        let class = match next {
            Next::Delivered => Some(AttemptClass::Success),
            Next::Retry { .. } | Next::Exhausted { .. } => Some(AttemptClass::Status),
            _ => None,
        };
        let now = UnixMillis::now();
        let attempt = class.map(|class| Attempt {
            id: self.id(AttemptId::generate),
            started_at: now,
            duration: Duration::from_millis(7),
            class,
            status: if class == AttemptClass::Success { 204 } else { 500 },
            response: Bytes::from_static(b"thanks"),
            url: "https://example.com/hook".into(),
        });
        Outcome {
            delivery: DeliveryId::derive(message.id, endpoint),
            message: message.id,
            endpoint,
            app: message.app,
            run,
            attempts: run + u32::from(attempt.is_some()),
            trigger: Trigger::Scheduled,
            at: now,
            attempt,
            next,
        }
    }

    pub(super) fn ended(&self, message: &Message, endpoint: EndpointId, run: u32, next: Next) -> Record {
        Record::Outcome(Box::new(self.outcome(message, endpoint, run, next)))
    }

    pub(super) async fn record(&self, batch: &[Record]) -> RecordReport {
        must(self.store.record(batch).await)
    }

    /// Records `count` messages to an endpoint, oldest first.
    pub(super) async fn accept_many(
        &self,
        endpoint: EndpointId,
        count: u64,
        disposition: Disposition,
    ) -> Vec<Arc<Message>> {
        let messages: Vec<_> = (0..count)
            .map(|n| self.message_aged(Duration::from_millis(count - n), |_| {}))
            .collect();
        let batch: Vec<_> = messages
            .iter()
            .map(|message| self.accepted(message, &[endpoint], disposition))
            .collect();
        self.record(&batch).await;
        messages
    }

    /// A message's deliveries, as recorded.
    pub(super) async fn deliveries(&self, message: &Message) -> Vec<DeliveryRow> {
        must(
            self.store
                .deliveries_of_message(self.app, message.id, &first(250))
                .await,
        )
    }

    /// The one delivery of a message.
    pub(super) async fn delivery(&self, message: &Message) -> DeliveryRow {
        let mut rows = self.deliveries(message).await;
        assert_eq!(rows.len(), 1, "deliveries of {}", message.id);
        rows.remove(0)
    }

    pub(super) async fn state(&self, message: &Message) -> DeliveryState {
        self.delivery(message).await.state
    }

    pub(super) async fn counts(&self, endpoint: EndpointId) -> EndpointCounts {
        must(self.store.endpoint_counts(endpoint, TimeRange::default()).await)
    }

    pub(super) async fn claim(&self) -> Vec<DueEndpoint> {
        must(
            self.store
                .claim_due(100, 1_000, 10 * SECOND, Duration::ZERO)
                .await,
        )
    }

    /// Claims until this endpoint is offered.
    pub(super) async fn claim_until(&self, endpoint: EndpointId) -> DueEndpoint {
        until("an endpoint is due", async || {
            let due = self.claim().await;
            due.into_iter()
                .find(|due| due.endpoint == endpoint && due.due > 0)
        })
        .await
    }

    pub(super) async fn lease(&self, grants: &[Grant], time: Duration) -> Vec<Job> {
        let leased = must(self.store.lease(grants, time, Duration::ZERO).await);
        leased.into_iter().map(|LeasedJob { job, .. }| job).collect()
    }

    /// Waits until the endpoint is due, then leases up to `count` for an hour.
    pub(super) async fn take(&self, endpoint: EndpointId, count: u32) -> Vec<Job> {
        let due = self.claim_until(endpoint).await;
        let grant = Grant {
            ordered: due.ordered,
            ..grant(endpoint, count)
        };
        self.lease(&[grant], HOUR).await
    }

    /// As [`Self::take`]; the deaths of what was leased, fewest first.
    pub(super) async fn take_deaths(&self, endpoint: EndpointId, count: u32) -> Vec<u32> {
        self.claim_until(endpoint).await;
        let leased = must(
            self.store
                .lease(&[grant(endpoint, count)], HOUR, Duration::ZERO)
                .await,
        );
        let mut deaths: Vec<u32> = leased.iter().map(|leased| leased.deaths).collect();
        deaths.sort_unstable();
        deaths
    }

    /// Leases whatever is due now, for an hour.
    pub(super) async fn take_all(&self) -> Vec<Job> {
        let leased = self.take_all_leased().await;
        leased.into_iter().map(|LeasedJob { job, .. }| job).collect()
    }

    pub(super) async fn take_all_leased(&self) -> Vec<LeasedJob> {
        let due = self.claim().await;
        let grants: Vec<_> = due
            .iter()
            .map(|due| Grant {
                ordered: due.ordered,
                ..grant(due.endpoint, due.due)
            })
            .collect();
        must(self.store.lease(&grants, HOUR, Duration::ZERO).await)
    }
}

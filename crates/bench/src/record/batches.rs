//! Records as gateway and worker make them: 1 KiB of payload, one endpoint, one successful attempt.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use postrider_model::{
    Accepted, AppId, Application, Attempt, AttemptClass, AttemptId, Claim, DeliveryId, Disposition, Endpoint,
    EndpointId, ExhaustedPolicy, HeaderNames, Message, MessageId, NewDelivery, Next, Outcome, Record,
    Trigger, UnixMillis,
};
use postrider_store::SharedStore;
use rand::Rng as _;

/// Bytes of a payload.
const PAYLOAD: usize = 1_024;

/// How a message's facts come to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// Message and outcome in one batch.
    Together,
    /// The outcomes of a batch come with the next one's messages.
    Apart,
}

impl Shape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Together => "together",
            Self::Apart => "apart",
        }
    }
}

/// Whom the messages are for.
pub(crate) struct Tenant {
    app: AppId,
    endpoint: EndpointId,
    /// As in the embedded set-up: a waiting row stands for a delivery at first, and claims are recorded.
    embedded: bool,
}

impl Tenant {
    pub(crate) async fn make(store: &SharedStore, embedded: bool) -> Result<Self> {
        let now = UnixMillis::now();
        let app = Application {
            id: AppId::generate(now, &mut rand::rng()),
            uid: None,
            name: "bench".into(),
            throttle_rate: None,
            propagate_traceparent: false,
            metadata: BTreeMap::new(),
            created_at: now,
            updated_at: now,
        };
        store.create_app(&app).await?;
        let endpoint = Endpoint {
            id: EndpointId::generate(now, &mut rand::rng()),
            app: app.id,
            uid: None,
            url: "http://127.0.0.1:9/ok/0/0".into(),
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
            secrets: Vec::new(),
            metadata: BTreeMap::new(),
            created_at: now,
            updated_at: now,
        };
        store
            .create_endpoint(&endpoint)
            .await?
            .context("the application is gone")?;
        Ok(Self {
            app: app.id,
            endpoint: endpoint.id,
            embedded,
        })
    }

    fn message(&self) -> Arc<Message> {
        let now = UnixMillis::now();
        let mut payload = vec![0; PAYLOAD];
        rand::rng().fill_bytes(&mut payload);
        Arc::new(Message {
            id: MessageId::generate(now, &mut rand::rng()),
            app: self.app,
            event_type: "invoice.paid".into(),
            event_id: None,
            channels: Vec::new(),
            content_type: "application/json".into(),
            payload: Bytes::from(payload),
            accepted_at: now,
            payload_retention_days: None,
            traceparent: None,
        })
    }

    fn accepted(&self, message: &Arc<Message>) -> Record {
        let claim = || Claim {
            key: rand::random(),
            resource: *message.id.as_bytes(),
            fingerprint: rand::random(),
            expires_at: message.accepted_at.plus(Duration::from_secs(12 * 3600)),
        };
        Record::Accepted(Accepted {
            message: Arc::clone(message),
            deliveries: vec![NewDelivery {
                id: DeliveryId::derive(message.id, self.endpoint),
                endpoint: self.endpoint,
                disposition: if self.embedded {
                    Disposition::Leased
                } else {
                    Disposition::Queued
                },
            }],
            trigger: Trigger::Scheduled,
            claims: self.embedded.then(claim).into_iter().collect(),
        })
    }

    fn outcome(&self, message: &Message) -> Record {
        let now = UnixMillis::now();
        Record::Outcome(Box::new(Outcome {
            delivery: DeliveryId::derive(message.id, self.endpoint),
            message: message.id,
            endpoint: self.endpoint,
            app: self.app,
            run: 0,
            attempts: 1,
            trigger: Trigger::Scheduled,
            at: now,
            attempt: Some(Attempt {
                id: AttemptId::generate(now, &mut rand::rng()),
                started_at: now,
                duration: Duration::from_millis(2),
                class: AttemptClass::Success,
                status: 200,
                response: Bytes::from_static(b"ok"),
                url: "http://127.0.0.1:9/ok/0/0".into(),
            }),
            next: Next::Delivered,
        }))
    }
}

/// The batches of so many new messages, `batch` of them in each.
pub(crate) fn batches(tenant: &Tenant, shape: Shape, messages: usize, batch: usize) -> Vec<Vec<Record>> {
    let all: Vec<Arc<Message>> = (0..messages).map(|_| tenant.message()).collect();
    let mut batches = Vec::new();
    let mut last: &[Arc<Message>] = &[];
    for part in all.chunks(batch).chain([&[][..]]) {
        let mut records: Vec<Record> = part.iter().map(|message| tenant.accepted(message)).collect();
        let ended = match shape {
            Shape::Together => part,
            Shape::Apart => std::mem::replace(&mut last, part),
        };
        records.extend(ended.iter().map(|message| tenant.outcome(message)));
        if !records.is_empty() {
            batches.push(records);
        }
    }
    batches
}

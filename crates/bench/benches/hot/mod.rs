//! The functions that every message pays on its way, each with what it is given: signing, frames, rate limits, matching,
//! ids. The benches of time and of instructions both run these, so that they speak of the same thing.
//!
//! Everything comes from fixed seeds: the same input in each run.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_limits::Rate;
use postrider_limits::gcra::Gcra;
use postrider_model::{
    Accepted, AppId, Attempt, AttemptClass, AttemptId, DeliveryId, Disposition, Endpoint, EndpointId,
    ExhaustedPolicy, HeaderNames, Job, Message, MessageId, NewDelivery, Next, Outcome, Record, Trigger,
    UnixMillis,
};
use postrider_signature::{Signer, SigningSecret};
use postrider_wire::Frame;
use rand::SeedableRng;
use rand::rngs::SmallRng;

/// Jobs of an envelope, and records of a journal frame, under load.
pub(crate) const ITEMS: u64 = 32;
/// How often what takes a few instructions is done in one measurement.
pub(crate) const TIMES: u64 = 100;
/// Bytes of a payload.
const PAYLOAD: usize = 1_024;
const AT: UnixMillis = UnixMillis(1_763_700_000_000);

/// A signer and what is signed.
pub(crate) fn signing() -> (Signer, Vec<u8>) {
    let secret = SigningSecret::symmetric(&[7; 32]).expect("32 bytes make a key");
    let signer = Signer::new([secret]).expect("one key is not too many");
    (signer, vec![b'x'; PAYLOAD])
}

/// The signature's header of one delivery.
pub(crate) fn sign((signer, body): &(Signer, Vec<u8>)) -> String {
    signer.sign("msg_2b4c9VqYwqEtUNQGfSZ8vyIqYwq", AT.as_secs(), body)
}

/// An envelope's jobs: as many messages, one endpoint each.
pub(crate) fn jobs() -> Vec<Job> {
    let job = |number| {
        let message = message(number);
        let endpoint = EndpointId::generate(AT, &mut rng(number));
        Job {
            delivery: DeliveryId::derive(message.id, endpoint),
            endpoint,
            message,
            run: 0,
            attempts: 0,
            trigger: Trigger::Scheduled,
            probe: false,
            has_token: false,
            ordered: false,
            lease_until: None,
        }
    };
    (0..ITEMS).map(job).collect()
}

/// A journal frame's records: messages, and as many outcomes.
pub(crate) fn records() -> Vec<Record> {
    let pair = |job: Job| [accepted(&job), delivered(&job)];
    let messages = usize::try_from(ITEMS / 2).expect("a small number");
    jobs().into_iter().take(messages).flat_map(pair).collect()
}

/// An envelope as it travels.
pub(crate) fn envelope() -> Bytes {
    postrider_wire::encode_jobs(&jobs())
}

/// A journal frame as it travels.
pub(crate) fn journal() -> Bytes {
    postrider_wire::encode_journal(&records())
}

/// A frame of either kind.
pub(crate) fn decode(frame: Bytes) -> Frame {
    postrider_wire::decode(frame).expect("what was encoded")
}

/// A rate of which a part of the decisions are refusals.
pub(crate) fn rate() -> Gcra {
    Gcra::new(Rate {
        per_second: 25_000,
        burst: 10,
    })
}

/// [`TIMES`] decisions, 20 µs apart; the last state.
pub(crate) fn decide(gcra: &Gcra) -> u64 {
    (0..TIMES).fold(0, |tat, number| {
        let now = black_box(1_000_000 + number * 20);
        gcra.take(tat, now, 1).unwrap_or(tat)
    })
}

/// The endpoints of an application, each subscribed to two types of events.
pub(crate) fn endpoints() -> Vec<Endpoint> {
    let types = |number: u64| vec![format!("kind.{}", number % 10), format!("other.{}", number % 7)];
    (0..100).map(|number| endpoint(number, types(number))).collect()
}

/// How many of them want a message.
pub(crate) fn matching(endpoints: &[Endpoint]) -> usize {
    let wanted = |endpoint: &&Endpoint| endpoint.subscribes_to(black_box("kind.3"), &[]);
    endpoints.iter().filter(wanted).count()
}

/// [`TIMES`] ids.
pub(crate) fn ids() -> Vec<MessageId> {
    (0..TIMES)
        .map(|number| MessageId::generate(AT, &mut rng(number)))
        .collect()
}

/// The text of each id.
pub(crate) fn texts(ids: &[MessageId]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}

/// The id of each text.
pub(crate) fn parse(texts: &[String]) -> Vec<MessageId> {
    texts
        .iter()
        .map(|text| text.parse().expect("the text of an id"))
        .collect()
}

fn rng(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}

fn message(number: u64) -> Arc<Message> {
    let mut rng = rng(number);
    Arc::new(Message {
        id: MessageId::generate(AT, &mut rng),
        app: AppId::generate(AT, &mut rng),
        event_type: "invoice.paid".into(),
        event_id: None,
        channels: Vec::new(),
        content_type: "application/json".into(),
        payload: Bytes::from(vec![b'x'; PAYLOAD]),
        accepted_at: AT,
        payload_retention_days: None,
        traceparent: None,
    })
}

fn accepted(job: &Job) -> Record {
    Record::Accepted(Accepted {
        message: Arc::clone(&job.message),
        deliveries: vec![NewDelivery {
            id: job.delivery,
            endpoint: job.endpoint,
            disposition: Disposition::Queued,
        }],
        trigger: job.trigger,
        claims: Vec::new(),
    })
}

fn delivered(job: &Job) -> Record {
    Record::Outcome(Box::new(Outcome {
        delivery: job.delivery,
        message: job.message.id,
        endpoint: job.endpoint,
        app: job.message.app,
        run: job.run,
        attempts: 1,
        trigger: job.trigger,
        at: AT,
        attempt: Some(Attempt {
            id: AttemptId::from_uuid(job.delivery.as_uuid()),
            started_at: AT,
            duration: Duration::from_millis(2),
            class: AttemptClass::Success,
            status: 200,
            response: Bytes::from_static(b"ok"),
            url: "https://example.com/hooks".into(),
        }),
        next: Next::Delivered,
    }))
}

fn endpoint(number: u64, event_types: Vec<String>) -> Endpoint {
    let mut rng = rng(number);
    Endpoint {
        id: EndpointId::generate(AT, &mut rng),
        app: AppId::generate(AT, &mut rng),
        uid: None,
        url: "https://example.com/hooks".into(),
        description: String::new(),
        event_types,
        channels: Vec::new(),
        disabled: false,
        paused: false,
        throttle_rate: None,
        ordered: false,
        on_exhausted: ExhaustedPolicy::default(),
        header_names: HeaderNames::default(),
        timeout: None,
        retry_schedule: None,
        headers: BTreeMap::new(),
        secrets: Vec::new(),
        metadata: BTreeMap::new(),
        created_at: AT,
        updated_at: AT,
    }
}

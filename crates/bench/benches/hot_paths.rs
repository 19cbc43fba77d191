//! What every message pays on its way: signing, envelopes, rate limits, matching.
//!
//! `cargo bench -p postrider-bench` runs them.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postrider_limits::Rate;
use postrider_limits::gcra::Gcra;
use postrider_model::{
    AppId, DeliveryId, Endpoint, EndpointId, ExhaustedPolicy, HeaderNames, Job, Message, MessageId, Trigger,
    UnixMillis,
};
use postrider_signature::{Signer, SigningSecret};

/// Jobs in an envelope under load.
const JOBS: usize = 64;

fn message(number: u64) -> Arc<Message> {
    let mut rng = rand(number);
    let at = UnixMillis(1_763_700_000_000);
    Arc::new(Message {
        id: MessageId::generate(at, &mut rng),
        app: AppId::generate(at, &mut rng),
        event_type: "invoice.paid".into(),
        event_id: None,
        channels: Vec::new(),
        content_type: "application/json".into(),
        payload: Bytes::from(vec![b'x'; 1_024]),
        accepted_at: at,
        payload_retention_days: None,
        traceparent: None,
    })
}

fn rand(seed: u64) -> impl rand::Rng {
    <rand::rngs::SmallRng as rand::SeedableRng>::seed_from_u64(seed)
}

fn endpoint(number: u64, event_types: Vec<String>) -> Endpoint {
    let at = UnixMillis(1_763_700_000_000);
    let mut rng = rand(number);
    Endpoint {
        id: EndpointId::generate(at, &mut rng),
        app: AppId::generate(at, &mut rng),
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
        created_at: at,
        updated_at: at,
    }
}

fn jobs() -> Vec<Job> {
    let job = |number| {
        let message = message(number);
        let endpoint = EndpointId::generate(message.accepted_at, &mut rand(number));
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
    (0..).take(JOBS).map(job).collect()
}

fn signing(criterion: &mut Criterion) {
    let secret = SigningSecret::symmetric(&[7; 32]).expect("32 bytes make a key");
    let signer = Signer::new([secret]).expect("one key is not too many");
    let body = vec![b'x'; 1_024];
    let mut group = criterion.benchmark_group("signing");
    group.throughput(Throughput::Elements(1));
    group.bench_function("hmac, 1 KiB", |bencher| {
        bencher.iter(|| {
            signer.sign(
                black_box("msg_2b4c9VqYwqEtUNQGfSZ8vyIqYwq"),
                1_763_700_000,
                black_box(&body),
            )
        });
    });
}

fn envelopes(criterion: &mut Criterion) {
    let jobs = jobs();
    let frame = postrider_wire::encode_jobs(&jobs);
    let mut group = criterion.benchmark_group("envelope of 64 jobs");
    group.throughput(Throughput::Elements(64));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| postrider_wire::encode_jobs(black_box(&jobs)));
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| postrider_wire::decode(black_box(frame.clone())).expect("what was encoded"));
    });
}

fn rate_limit(criterion: &mut Criterion) {
    let gcra = Gcra::new(Rate {
        per_second: 100_000,
        burst: 10_000,
    });
    criterion.bench_function("gcra, one permit", |bencher| {
        let (mut tat, mut now) = (0, 1_000_000);
        bencher.iter(|| {
            now += 20;
            tat = gcra.take(black_box(tat), black_box(now), 1).unwrap_or(tat);
            tat
        });
    });
}

fn matching(criterion: &mut Criterion) {
    let types = |number: u64| vec![format!("kind.{}", number % 10), format!("other.{}", number % 7)];
    let endpoints: Vec<Endpoint> = (0..100).map(|number| endpoint(number, types(number))).collect();
    let mut group = criterion.benchmark_group("matching");
    group.throughput(Throughput::Elements(100));
    group.bench_function("100 endpoints, 2 types each", |bencher| {
        bencher.iter(|| {
            let wanted = |endpoint: &&Endpoint| endpoint.subscribes_to(black_box("kind.3"), &[]);
            endpoints.iter().filter(wanted).count()
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = signing, envelopes, rate_limit, matching
}
criterion_main!(benches);

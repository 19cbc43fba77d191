//! How long the hot functions take. `cargo bench -p postrider-bench --bench hot_paths` runs them.

mod hot;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn signing(criterion: &mut Criterion) {
    let input = hot::signing();
    let mut group = criterion.benchmark_group("signing");
    group.throughput(Throughput::Elements(1));
    group.bench_function("hmac, 1 KiB", |bencher| {
        bencher.iter(|| hot::sign(black_box(&input)));
    });
}

fn frames(criterion: &mut Criterion) {
    let (jobs, records) = (hot::jobs(), hot::records());
    let mut group = criterion.benchmark_group("frames");
    group.throughput(Throughput::Elements(hot::ITEMS));
    group.bench_function("envelope, encode", |bencher| {
        bencher.iter(|| postrider_wire::encode_jobs(black_box(&jobs)));
    });
    group.bench_function("journal, encode", |bencher| {
        bencher.iter(|| postrider_wire::encode_journal(black_box(&records)));
    });
    for (name, frame) in [
        ("envelope, decode", hot::envelope()),
        ("journal, decode", hot::journal()),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| hot::decode(black_box(frame.clone())));
        });
    }
}

fn rate_limit(criterion: &mut Criterion) {
    let gcra = hot::rate();
    let mut group = criterion.benchmark_group("gcra");
    group.throughput(Throughput::Elements(hot::TIMES));
    group.bench_function("one permit", |bencher| {
        bencher.iter(|| hot::decide(black_box(&gcra)));
    });
}

fn matching(criterion: &mut Criterion) {
    let endpoints = hot::endpoints();
    let mut group = criterion.benchmark_group("matching");
    group.throughput(Throughput::Elements(100));
    group.bench_function("100 endpoints, 2 types each", |bencher| {
        bencher.iter(|| hot::matching(black_box(&endpoints)));
    });
}

fn ids(criterion: &mut Criterion) {
    let ids = hot::ids();
    let texts = hot::texts(&ids);
    let mut group = criterion.benchmark_group("ids");
    group.throughput(Throughput::Elements(hot::TIMES));
    group.bench_function("to text", |bencher| {
        bencher.iter(|| hot::texts(black_box(&ids)));
    });
    group.bench_function("parse", |bencher| {
        bencher.iter(|| hot::parse(black_box(&texts)));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = signing, frames, rate_limit, matching, ids
}
criterion_main!(benches);

//! How many instructions the hot functions take, counted by Callgrind: a regression shows on a noisy machine.
//!
//! `cargo xtask bench --instructions` installs what is needed, runs this and compares with `instructions.toml`. What a
//! function is given comes back with its result, so that dropping it is not counted. The allocator is the system's: with
//! Postrider's own, counts of the same program differ by a tenth from run to run.
#![expect(missing_docs, reason = "the macros make public items")]

mod hot;

use std::hint::black_box;

use bytes::Bytes;
use gungraun::{library_benchmark, library_benchmark_group, main};
use postrider_limits::gcra::Gcra;
use postrider_model::{Endpoint, Job, MessageId, Record};
use postrider_signature::Signer;
use postrider_wire::Frame;

/// Has it done once: what counts is the steady state, in which the allocator has used its memory before.
fn warm<T, R>(input: T, work: impl Fn(&T) -> R) -> T {
    black_box(work(&input));
    input
}

#[library_benchmark]
#[bench::kib(warm(hot::signing(), hot::sign))]
fn sign(input: (Signer, Vec<u8>)) -> ((Signer, Vec<u8>), String) {
    let signed = hot::sign(black_box(&input));
    (input, signed)
}

#[library_benchmark]
#[bench::jobs_32(warm(hot::jobs(), |jobs| postrider_wire::encode_jobs(jobs)))]
fn encode_envelope(jobs: Vec<Job>) -> (Vec<Job>, Bytes) {
    let frame = postrider_wire::encode_jobs(black_box(&jobs));
    (jobs, frame)
}

#[library_benchmark]
#[bench::jobs_32(warm(hot::envelope(), |frame| hot::decode(frame.clone())))]
fn decode_envelope(frame: Bytes) -> Frame {
    hot::decode(black_box(frame))
}

#[library_benchmark]
#[bench::records_32(warm(hot::records(), |records| postrider_wire::encode_journal(records)))]
fn encode_journal(records: Vec<Record>) -> (Vec<Record>, Bytes) {
    let frame = postrider_wire::encode_journal(black_box(&records));
    (records, frame)
}

#[library_benchmark]
#[bench::records_32(warm(hot::journal(), |frame| hot::decode(frame.clone())))]
fn decode_journal(frame: Bytes) -> Frame {
    hot::decode(black_box(frame))
}

#[library_benchmark]
#[bench::times_100(hot::rate())]
fn gcra(rate: Gcra) -> u64 {
    hot::decide(black_box(&rate))
}

#[library_benchmark]
#[bench::endpoints_100(hot::endpoints())]
fn matching(endpoints: Vec<Endpoint>) -> (Vec<Endpoint>, usize) {
    let wanted = hot::matching(black_box(&endpoints));
    (endpoints, wanted)
}

#[library_benchmark]
#[bench::times_100(warm(hot::ids(), |ids| hot::texts(ids)))]
fn id_to_text(ids: Vec<MessageId>) -> Vec<String> {
    hot::texts(black_box(&ids))
}

#[library_benchmark]
#[bench::times_100(warm(hot::texts(&hot::ids()), |texts| hot::parse(texts)))]
fn id_parse(texts: Vec<String>) -> (Vec<String>, Vec<MessageId>) {
    let ids = hot::parse(black_box(&texts));
    (texts, ids)
}

library_benchmark_group!(
    name = hot_paths,
    benchmarks = [
        sign,
        encode_envelope,
        decode_envelope,
        encode_journal,
        decode_journal,
        gcra,
        matching,
        id_to_text,
        id_parse
    ]
);

main!(library_benchmark_groups = hot_paths);

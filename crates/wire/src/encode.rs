//! From the model to bytes.
//!
//! Written by hand, since it is on the way of every message several times: from the model straight into the frame, without
//! the generated types in between. Fields stand in descending order ([`Backward`]). A test freezes the bytes.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use postrider_model::{
    Accepted, Attempt, Claim, DeferReason, Disposition, Job, Message, MessageId, NewDelivery, Next, Outcome,
    Record, UnixMillis,
};

use crate::backward::Backward;
use crate::enums::{cancel_to_wire, class_to_wire, defer_to_wire, trigger_to_wire};
use crate::{SCHEMA, SizeHint, proto};

/// For the frame's own fields.
const FRAME: usize = 32;

/// A frame of jobs, each message once.
pub fn encode_jobs(jobs: &[Job]) -> Bytes {
    let mut messages: Vec<&Message> = Vec::new();
    let mut places: HashMap<MessageId, usize> = HashMap::with_capacity(jobs.len());
    let mut size = FRAME;
    let place_of: Vec<usize> = jobs
        .iter()
        .map(|job| {
            size += job.size_hint();
            *places.entry(job.message.id).or_insert_with(|| {
                size += job.message.size_hint();
                messages.push(&job.message);
                messages.len() - 1
            })
        })
        .collect();
    frame(size, 2, |out| {
        for (job, place) in jobs.iter().zip(&place_of).rev() {
            out.message(2, |out| write_job(out, job, *place));
        }
        for message in messages.iter().rev() {
            out.message(1, |out| write_message(out, message));
        }
    })
}

/// A frame of journal records.
pub fn encode_journal(records: &[Record]) -> Bytes {
    let size = records.iter().map(SizeHint::size_hint).sum::<usize>();
    frame(FRAME + size, 3, |out| {
        for record in records.iter().rev() {
            out.message(1, |out| match record {
                Record::Accepted(accepted) => out.message(1, |out| write_accepted(out, accepted)),
                Record::Outcome(outcome) => out.message(2, |out| write_outcome(out, outcome)),
            });
        }
    })
}

/// One outcome alone, without a schema version: a done mark lives for minutes and is read by the same release or
/// its neighbour.
pub fn encode_outcome(value: &Outcome) -> Bytes {
    let mut out = Backward::with_capacity(value.size_hint());
    write_outcome(&mut out, value);
    out.finish()
}

fn frame(size: usize, kind: u32, write: impl FnOnce(&mut Backward)) -> Bytes {
    let mut out = Backward::with_capacity(size);
    out.message(kind, write);
    out.number(1, SCHEMA);
    out.finish()
}

/// Rounded up, so that nothing comes back earlier than asked for.
fn delay_millis(delay: Duration) -> u64 {
    u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn millis(at: UnixMillis) -> u64 {
    at.0.cast_unsigned()
}

/// A value of an enum; none is negative.
fn kind(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

fn write_message(out: &mut Backward, value: &Message) {
    if let Some(traceparent) = &value.traceparent {
        out.item(10, traceparent);
    }
    if let Some(days) = value.payload_retention_days {
        out.optional(9, days.into());
    }
    out.number(8, millis(value.accepted_at));
    out.bytes(7, &value.payload);
    out.bytes(6, &value.content_type);
    for channel in value.channels.iter().rev() {
        out.item(5, channel);
    }
    if let Some(event_id) = &value.event_id {
        out.item(4, event_id);
    }
    out.bytes(3, &value.event_type);
    out.bytes(2, value.app.as_bytes());
    out.bytes(1, value.id.as_bytes());
}

fn write_job(out: &mut Backward, value: &Job, message: usize) {
    if let Some(at) = value.lease_until {
        out.optional(10, millis(at));
    }
    out.number(9, value.ordered);
    out.number(8, value.has_token);
    out.number(7, value.probe);
    out.number(6, kind(trigger_to_wire(value.trigger)));
    out.number(5, value.attempts);
    out.number(4, value.run);
    out.number(3, message as u64);
    out.bytes(2, value.endpoint.as_bytes());
    out.bytes(1, value.delivery.as_bytes());
}

fn write_accepted(out: &mut Backward, value: &Accepted) {
    for claim in value.claims.iter().rev() {
        out.message(4, |out| write_claim(out, claim));
    }
    out.number(3, kind(trigger_to_wire(value.trigger)));
    for delivery in value.deliveries.iter().rev() {
        out.message(2, |out| write_new_delivery(out, delivery));
    }
    out.message(1, |out| write_message(out, &value.message));
}

fn write_new_delivery(out: &mut Backward, value: &NewDelivery) {
    let (disposition, reason) = match value.disposition {
        Disposition::Queued => (proto::Disposition::Queued, 0),
        Disposition::Leased => (proto::Disposition::Leased, 0),
        Disposition::Waiting(reason) => (proto::Disposition::Waiting, defer_to_wire(reason)),
        Disposition::Ordered => (proto::Disposition::Ordered, 0),
    };
    out.number(4, kind(reason));
    out.number(3, kind(disposition as i32));
    out.bytes(2, value.endpoint.as_bytes());
    out.bytes(1, value.id.as_bytes());
}

fn write_claim(out: &mut Backward, value: &Claim) {
    out.number(4, millis(value.expires_at));
    out.bytes(3, value.fingerprint);
    out.bytes(2, value.resource);
    out.bytes(1, value.key);
}

fn write_outcome(out: &mut Backward, value: &Outcome) {
    write_next(out, value.next);
    if let Some(attempt) = &value.attempt {
        out.message(9, |out| write_attempt(out, attempt));
    }
    out.number(8, millis(value.at));
    out.number(7, kind(trigger_to_wire(value.trigger)));
    out.number(6, value.attempts);
    out.number(5, value.run);
    out.bytes(4, value.app.as_bytes());
    out.bytes(3, value.endpoint.as_bytes());
    out.bytes(2, value.message.as_bytes());
    out.bytes(1, value.delivery.as_bytes());
}

fn write_next(out: &mut Backward, next: Next) {
    match next {
        Next::Delivered => out.message(10, |_| {}),
        Next::Retry { delay } => out.message(11, |out| out.number(1, delay_millis(delay))),
        Next::Exhausted { gone } => out.message(12, |out| out.number(1, gone)),
        Next::Cancelled(reason) => out.message(13, |out| out.number(1, kind(cancel_to_wire(reason)))),
        Next::Deferred { reason, delay } => out.message(14, |out| write_deferred(out, reason, delay)),
        Next::InFlight { delay } => out.message(15, |out| out.number(1, delay_millis(delay))),
    }
}

fn write_deferred(out: &mut Backward, reason: DeferReason, delay: Duration) {
    out.number(2, delay_millis(delay));
    out.number(1, kind(defer_to_wire(reason)));
}

fn write_attempt(out: &mut Backward, value: &Attempt) {
    out.bytes(7, &value.url);
    out.bytes(6, &value.response);
    out.number(5, value.status);
    out.number(4, kind(class_to_wire(value.class)));
    out.number(3, u64::try_from(value.duration.as_micros()).unwrap_or(u64::MAX));
    out.number(2, millis(value.started_at));
    out.bytes(1, value.id.as_bytes());
}

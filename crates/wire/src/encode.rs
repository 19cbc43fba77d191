//! From the model to bytes.
//!
//! Written by hand, since it is on the way of every message several times: from the model straight into the frame, without
//! the generated types in between. Fields stand in descending order ([`Backward`]).
//!
//! What is added to `proto/` is added here too: the round trip tells when it is missing. Tests freeze the bytes, and compare them
//! with what `prost` would write.

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

/// Bytes of a frame beside its items: its own fields take 8 at most, the rest is for what the items' hints leave out.
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
            // Jobs of one message mostly stand together.
            if messages.last().is_some_and(|last| last.id == job.message.id) {
                return messages.len() - 1;
            }
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

fn frame(size: usize, field: u8, write: impl FnOnce(&mut Backward)) -> Bytes {
    let mut out = Backward::with_capacity(size);
    out.message(field, write);
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
fn enum_value(value: i32) -> u64 {
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
    out.id(2, value.app.as_bytes());
    out.id(1, value.id.as_bytes());
}

fn write_job(out: &mut Backward, value: &Job, message: usize) {
    if let Some(at) = value.lease_until {
        out.optional(10, millis(at));
    }
    out.number(9, value.ordered);
    out.number(8, value.has_token);
    out.number(7, value.probe);
    out.number(6, enum_value(trigger_to_wire(value.trigger)));
    out.number(5, value.attempts);
    out.number(4, value.run);
    out.number(3, message as u64);
    out.id(2, value.endpoint.as_bytes());
    out.id(1, value.delivery.as_bytes());
}

fn write_accepted(out: &mut Backward, value: &Accepted) {
    for claim in value.claims.iter().rev() {
        out.message(4, |out| write_claim(out, claim));
    }
    out.number(3, enum_value(trigger_to_wire(value.trigger)));
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
    out.number(4, enum_value(reason));
    out.number(3, enum_value(disposition as i32));
    out.id(2, value.endpoint.as_bytes());
    out.id(1, value.id.as_bytes());
}

fn write_claim(out: &mut Backward, value: &Claim) {
    out.number(4, millis(value.expires_at));
    out.bytes(3, value.fingerprint);
    out.id(2, &value.resource);
    out.bytes(1, value.key);
}

fn write_outcome(out: &mut Backward, value: &Outcome) {
    write_next(out, value.next);
    if let Some(attempt) = &value.attempt {
        out.message(9, |out| write_attempt(out, attempt));
    }
    out.number(8, millis(value.at));
    out.number(7, enum_value(trigger_to_wire(value.trigger)));
    out.number(6, value.attempts);
    out.number(5, value.run);
    out.id(4, value.app.as_bytes());
    out.id(3, value.endpoint.as_bytes());
    out.id(2, value.message.as_bytes());
    out.id(1, value.delivery.as_bytes());
}

fn write_next(out: &mut Backward, next: Next) {
    match next {
        Next::Delivered => out.message(10, |_| {}),
        Next::Retry { delay } => out.message(11, |out| out.number(1, delay_millis(delay))),
        Next::Exhausted { gone } => out.message(12, |out| out.number(1, gone)),
        Next::Cancelled(reason) => out.message(13, |out| out.number(1, enum_value(cancel_to_wire(reason)))),
        Next::Deferred { reason, delay } => out.message(14, |out| write_deferred(out, reason, delay)),
        Next::InFlight { delay } => out.message(15, |out| out.number(1, delay_millis(delay))),
    }
}

fn write_deferred(out: &mut Backward, reason: DeferReason, delay: Duration) {
    out.number(2, delay_millis(delay));
    out.number(1, enum_value(defer_to_wire(reason)));
}

fn write_attempt(out: &mut Backward, value: &Attempt) {
    out.bytes(7, &value.url);
    out.bytes(6, &value.response);
    out.number(5, value.status);
    out.number(4, enum_value(class_to_wire(value.class)));
    out.number(3, u64::try_from(value.duration.as_micros()).unwrap_or(u64::MAX));
    out.number(2, millis(value.started_at));
    out.id(1, value.id.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use postrider_model::{AppId, AttemptClass, AttemptId, CancelReason, DeliveryId, EndpointId, Trigger};
    use prost::Message as _;

    use super::*;

    fn message(empty: bool) -> Arc<Message> {
        let text = |text: &str| if empty { String::new() } else { text.to_owned() };
        Arc::new(Message {
            id: MessageId::floor(UnixMillis(0)),
            app: AppId::floor(UnixMillis(1)),
            event_type: text("a"),
            event_id: Some(text("b")),
            channels: vec![text("c"), String::new()],
            content_type: text("d"),
            payload: Bytes::from(text("{}")),
            accepted_at: UnixMillis(if empty { 0 } else { -1 }),
            payload_retention_days: Some(if empty { 0 } else { u16::MAX }),
            traceparent: Some(text("e")),
        })
    }

    fn job(empty: bool, message: &Arc<Message>) -> Job {
        Job {
            delivery: DeliveryId::floor(UnixMillis(2)),
            endpoint: EndpointId::floor(UnixMillis(3)),
            message: Arc::clone(message),
            run: if empty { 0 } else { u32::MAX },
            attempts: if empty { 0 } else { 300 },
            trigger: Trigger::Scheduled,
            probe: !empty,
            has_token: !empty,
            ordered: !empty,
            lease_until: Some(UnixMillis(if empty { 0 } else { i64::MIN })),
        }
    }

    fn outcome(empty: bool, next: Next) -> Outcome {
        Outcome {
            delivery: DeliveryId::floor(UnixMillis(2)),
            message: MessageId::floor(UnixMillis(0)),
            endpoint: EndpointId::floor(UnixMillis(3)),
            app: AppId::floor(UnixMillis(1)),
            run: 0,
            attempts: if empty { 0 } else { 1 },
            trigger: Trigger::Manual,
            at: UnixMillis(if empty { 0 } else { -5 }),
            attempt: Some(Attempt {
                id: AttemptId::floor(UnixMillis(4)),
                started_at: UnixMillis(if empty { 0 } else { -6 }),
                duration: Duration::from_secs(if empty { 0 } else { u64::MAX }),
                class: AttemptClass::Success,
                status: if empty { 0 } else { 599 },
                response: Bytes::from(vec![0xff; if empty { 0 } else { 200 }]),
                url: if empty {
                    String::new()
                } else {
                    "https://a".to_owned()
                },
            }),
            next,
        }
    }

    fn nexts() -> Vec<Next> {
        let (reason, delay) = (DeferReason::Retry, Duration::from_secs(1));
        vec![
            Next::Delivered,
            Next::Retry {
                delay: Duration::ZERO,
            },
            Next::Retry { delay },
            Next::Exhausted { gone: false },
            Next::Exhausted { gone: true },
            Next::Cancelled(CancelReason::Parked),
            Next::Deferred {
                reason,
                delay: Duration::ZERO,
            },
            Next::InFlight { delay: Duration::MAX },
        ]
    }

    /// What `prost` makes of a frame that it has read.
    fn again(frame: &Bytes) -> Vec<u8> {
        proto::Frame::decode(frame.clone()).unwrap().encode_to_vec()
    }

    #[test]
    fn frames_are_those_of_prost_at_the_edges_too() {
        let (empty, full) = (message(true), message(false));
        let jobs = [job(true, &empty), job(false, &full), job(false, &empty)];
        let frame = encode_jobs(&jobs);
        assert_eq!(frame, again(&frame));
        assert_eq!(encode_jobs(&[]), again(&encode_jobs(&[])));

        let outcomes = nexts().into_iter().zip([true, false].into_iter().cycle());
        let mut records: Vec<Record> = outcomes
            .map(|(next, empty)| Record::Outcome(Box::new(outcome(empty, next))))
            .collect();
        records.extend([empty, full].map(|message| {
            Record::Accepted(Accepted {
                message,
                deliveries: Vec::new(),
                trigger: Trigger::Scheduled,
                claims: Vec::new(),
            })
        }));
        let frame = encode_journal(&records);
        assert_eq!(frame, again(&frame));
        assert_eq!(encode_journal(&[]), again(&encode_journal(&[])));
    }

    #[test]
    fn a_mark_is_that_of_prost_at_the_edges_too() {
        for (next, empty) in nexts().into_iter().zip([true, false].into_iter().cycle()) {
            let mark = encode_outcome(&outcome(empty, next));
            let read = proto::Outcome::decode(mark.clone()).unwrap();
            assert_eq!(mark, read.encode_to_vec(), "{next:?}");
        }
    }
}

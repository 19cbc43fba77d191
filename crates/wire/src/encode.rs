//! From the model to bytes.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use postrider_model::{
    Accepted, Attempt, Claim, Disposition, Job, Message, MessageId, NewDelivery, Next, Outcome, Record,
};
use prost::Message as _;

use crate::enums::{cancel_to_wire, class_to_wire, defer_to_wire, trigger_to_wire};
use crate::{SCHEMA, proto};

/// A frame of jobs, each message once.
pub fn encode_jobs(jobs: &[Job]) -> Bytes {
    let mut messages: Vec<proto::Message> = Vec::new();
    let mut places: HashMap<MessageId, u32> = HashMap::new();
    let jobs = jobs
        .iter()
        .map(|item| {
            let place = *places.entry(item.message.id).or_insert_with(|| {
                messages.push(message(&item.message));
                u32::try_from(messages.len() - 1).unwrap_or(u32::MAX)
            });
            job(item, place)
        })
        .collect();
    frame(proto::frame::Kind::Jobs(proto::Jobs { messages, jobs }))
}

/// A frame of journal records.
pub fn encode_journal(records: &[Record]) -> Bytes {
    let records = records.iter().map(record).collect();
    frame(proto::frame::Kind::Journal(proto::Journal { records }))
}

/// One outcome alone, without a schema version: a done mark lives for minutes and is read by the same release or
/// its neighbour.
pub fn encode_outcome(value: &Outcome) -> Bytes {
    outcome(value).encode_to_vec().into()
}

fn frame(kind: proto::frame::Kind) -> Bytes {
    let frame = proto::Frame {
        schema: SCHEMA,
        kind: Some(kind),
    };
    frame.encode_to_vec().into()
}

fn id(bytes: &[u8; 16]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// Rounded up, so that nothing comes back earlier than asked for.
fn delay_millis(delay: Duration) -> u64 {
    u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn message(value: &Message) -> proto::Message {
    proto::Message {
        id: id(value.id.as_bytes()),
        app: id(value.app.as_bytes()),
        event_type: value.event_type.clone(),
        event_id: value.event_id.clone(),
        channels: value.channels.clone(),
        content_type: value.content_type.clone(),
        payload: value.payload.clone(),
        accepted_at: value.accepted_at.0,
        payload_retention_days: value.payload_retention_days.map(u32::from),
        traceparent: value.traceparent.clone(),
    }
}

fn job(value: &Job, message: u32) -> proto::Job {
    proto::Job {
        delivery: id(value.delivery.as_bytes()),
        endpoint: id(value.endpoint.as_bytes()),
        message,
        run: value.run,
        attempts: value.attempts,
        trigger: trigger_to_wire(value.trigger),
        probe: value.probe,
        has_token: value.has_token,
        ordered: value.ordered,
        lease_until: value.lease_until.map(|at| at.0),
    }
}

fn record(value: &Record) -> proto::Record {
    let fact = match value {
        Record::Accepted(value) => proto::record::Fact::Accepted(accepted(value)),
        Record::Outcome(value) => proto::record::Fact::Outcome(outcome(value)),
    };
    proto::Record { fact: Some(fact) }
}

fn accepted(value: &Accepted) -> proto::Accepted {
    proto::Accepted {
        message: Some(message(&value.message)),
        deliveries: value.deliveries.iter().map(new_delivery).collect(),
        trigger: trigger_to_wire(value.trigger),
        claims: value.claims.iter().map(claim).collect(),
    }
}

fn new_delivery(value: &NewDelivery) -> proto::NewDelivery {
    let (disposition, reason) = match value.disposition {
        Disposition::Queued => (proto::Disposition::Queued, 0),
        Disposition::Leased => (proto::Disposition::Leased, 0),
        Disposition::Waiting(reason) => (proto::Disposition::Waiting, defer_to_wire(reason)),
        Disposition::Ordered => (proto::Disposition::Ordered, 0),
    };
    proto::NewDelivery {
        id: id(value.id.as_bytes()),
        endpoint: id(value.endpoint.as_bytes()),
        disposition: disposition as i32,
        reason,
    }
}

fn claim(value: &Claim) -> proto::Claim {
    proto::Claim {
        key: Bytes::copy_from_slice(&value.key),
        resource: Bytes::copy_from_slice(&value.resource),
        fingerprint: Bytes::copy_from_slice(&value.fingerprint),
        expires_at: value.expires_at.0,
    }
}

fn outcome(value: &Outcome) -> proto::Outcome {
    proto::Outcome {
        delivery: id(value.delivery.as_bytes()),
        message: id(value.message.as_bytes()),
        endpoint: id(value.endpoint.as_bytes()),
        app: id(value.app.as_bytes()),
        run: value.run,
        attempts: value.attempts,
        trigger: trigger_to_wire(value.trigger),
        at: value.at.0,
        attempt: value.attempt.as_ref().map(attempt),
        next: Some(next(value.next)),
    }
}

fn next(value: Next) -> proto::outcome::Next {
    use proto::outcome::Next as Wire;
    match value {
        Next::Delivered => Wire::Delivered(proto::Delivered {}),
        Next::Retry { delay } => Wire::Retry(proto::Retry {
            delay: delay_millis(delay),
        }),
        Next::Exhausted { gone } => Wire::Exhausted(proto::Exhausted { gone }),
        Next::Cancelled(reason) => Wire::Cancelled(proto::Cancelled {
            reason: cancel_to_wire(reason),
        }),
        Next::Deferred { reason, delay } => Wire::Deferred(proto::Deferred {
            reason: defer_to_wire(reason),
            delay: delay_millis(delay),
        }),
        Next::InFlight { delay } => Wire::InFlight(proto::InFlight {
            delay: delay_millis(delay),
        }),
    }
}

fn attempt(value: &Attempt) -> proto::Attempt {
    proto::Attempt {
        id: id(value.id.as_bytes()),
        started_at: value.started_at.0,
        duration: u64::try_from(value.duration.as_micros()).unwrap_or(u64::MAX),
        class: class_to_wire(value.class),
        status: u32::from(value.status),
        response: value.response.clone(),
        url: value.url.clone(),
    }
}

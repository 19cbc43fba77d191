//! From bytes to the model.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_model::{
    Accepted, AppId, Attempt, AttemptId, Claim, DeliveryId, Disposition, EndpointId, Job, Message, MessageId,
    NewDelivery, Next, Outcome, Record, UnixMillis,
};
use prost::Message as _;

use crate::enums::{cancel_from_wire, class_from_wire, defer_from_wire, trigger_from_wire};
use crate::error::{ItemError, WireError};
use crate::{MAX_BYTES, MAX_ITEMS, SCHEMA, proto};

/// A frame's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Deliveries for a worker, in the order in which they were put in.
    Jobs(Vec<Job>),
    /// Facts for the recorder, in the order in which they were put in.
    Journal(Vec<Record>),
}

/// An item that [`decode_partial`] left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its place in the frame, from 0.
    pub index: usize,
    /// What is wrong with it.
    pub error: ItemError,
}

/// Reads a frame. One bad item is an error of the whole frame ([`WireError::Item`]); [`decode_partial`] saves the
/// others.
pub fn decode(frame: Bytes) -> Result<Frame, WireError> {
    let (frame, rejected) = decode_partial(frame)?;
    match rejected.into_iter().next() {
        None => Ok(frame),
        Some(Rejected { index, error }) => Err(WireError::Item { index, source: error }),
    }
}

/// Reads a frame's good items and names the bad ones.
pub fn decode_partial(frame: Bytes) -> Result<(Frame, Vec<Rejected>), WireError> {
    if frame.len() > MAX_BYTES {
        return Err(WireError::TooLarge { found: frame.len() });
    }
    let frame = proto::Frame::decode(frame).map_err(WireError::Malformed)?;
    if frame.schema == 0 || frame.schema > SCHEMA {
        return Err(WireError::Schema { found: frame.schema });
    }
    match frame.kind.ok_or(WireError::Kind)? {
        proto::frame::Kind::Jobs(jobs) => {
            let messages: Vec<_> = jobs
                .messages
                .into_iter()
                .map(|wire| message(wire).map(Arc::new))
                .collect();
            let (jobs, rejected) = sift(jobs.jobs, |wire| job(&wire, &messages))?;
            Ok((Frame::Jobs(jobs), rejected))
        }
        proto::frame::Kind::Journal(journal) => {
            let (records, rejected) = sift(journal.records, record)?;
            Ok((Frame::Journal(records), rejected))
        }
    }
}

/// Reads what [`crate::encode_outcome`] wrote.
pub fn decode_outcome(bytes: Bytes) -> Result<Outcome, WireError> {
    if bytes.len() > MAX_BYTES {
        return Err(WireError::TooLarge { found: bytes.len() });
    }
    let wire = proto::Outcome::decode(bytes).map_err(WireError::Malformed)?;
    outcome(wire).map_err(|source| WireError::Item { index: 0, source })
}

fn sift<W, T>(
    items: Vec<W>,
    read: impl Fn(W) -> Result<T, ItemError>,
) -> Result<(Vec<T>, Vec<Rejected>), WireError> {
    if items.len() > MAX_ITEMS {
        return Err(WireError::TooMany { found: items.len() });
    }
    let mut good = Vec::with_capacity(items.len());
    let mut rejected = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        match read(item) {
            Ok(item) => good.push(item),
            Err(error) => rejected.push(Rejected { index, error }),
        }
    }
    Ok((good, rejected))
}

fn id<T>(from: impl Fn(&[u8]) -> Option<T>, bytes: &Bytes, field: &'static str) -> Result<T, ItemError> {
    from(bytes).ok_or(ItemError::Length {
        field,
        found: bytes.len(),
        wanted: 16,
    })
}

fn array<const N: usize>(bytes: &Bytes, field: &'static str) -> Result<[u8; N], ItemError> {
    <[u8; N]>::try_from(bytes.as_ref()).map_err(|_| ItemError::Length {
        field,
        found: bytes.len(),
        wanted: N,
    })
}

fn small(value: u32, field: &'static str) -> Result<u16, ItemError> {
    u16::try_from(value).map_err(|_| ItemError::Range { field })
}

fn message(wire: proto::Message) -> Result<Message, ItemError> {
    Ok(Message {
        id: id(MessageId::from_slice, &wire.id, "message.id")?,
        app: id(AppId::from_slice, &wire.app, "message.app")?,
        event_type: wire.event_type,
        event_id: wire.event_id,
        channels: wire.channels,
        content_type: wire.content_type,
        payload: wire.payload,
        accepted_at: UnixMillis(wire.accepted_at),
        payload_retention_days: wire
            .payload_retention_days
            .map(|days| small(days, "message.payload_retention_days"))
            .transpose()?,
        traceparent: wire.traceparent,
    })
}

fn job(wire: &proto::Job, messages: &[Result<Arc<Message>, ItemError>]) -> Result<Job, ItemError> {
    let message = usize::try_from(wire.message)
        .ok()
        .and_then(|place| messages.get(place))
        .ok_or(ItemError::Range { field: "message" })?
        .clone()?;
    Ok(Job {
        delivery: id(DeliveryId::from_slice, &wire.delivery, "delivery")?,
        endpoint: id(EndpointId::from_slice, &wire.endpoint, "endpoint")?,
        message,
        run: wire.run,
        attempts: wire.attempts,
        trigger: trigger_from_wire(wire.trigger)?,
        probe: wire.probe,
        has_token: wire.has_token,
        ordered: wire.ordered,
        lease_until: wire.lease_until.map(UnixMillis),
    })
}

fn record(wire: proto::Record) -> Result<Record, ItemError> {
    match wire.fact.ok_or(ItemError::Missing { field: "fact" })? {
        proto::record::Fact::Accepted(wire) => accepted(wire).map(Record::Accepted),
        proto::record::Fact::Outcome(wire) => outcome(wire).map(|outcome| Record::Outcome(Box::new(outcome))),
    }
}

fn accepted(wire: proto::Accepted) -> Result<Accepted, ItemError> {
    let wire_message = wire.message.ok_or(ItemError::Missing { field: "message" })?;
    Ok(Accepted {
        message: Arc::new(message(wire_message)?),
        deliveries: wire
            .deliveries
            .iter()
            .map(new_delivery)
            .collect::<Result<_, _>>()?,
        trigger: trigger_from_wire(wire.trigger)?,
        claims: wire.claims.iter().map(claim).collect::<Result<_, _>>()?,
    })
}

fn new_delivery(wire: &proto::NewDelivery) -> Result<NewDelivery, ItemError> {
    let disposition = match proto::Disposition::try_from(wire.disposition) {
        Ok(proto::Disposition::Queued) => Disposition::Queued,
        Ok(proto::Disposition::Leased) => Disposition::Leased,
        Ok(proto::Disposition::Waiting) => Disposition::Waiting(defer_from_wire(wire.reason)?),
        Ok(proto::Disposition::Ordered) => Disposition::Ordered,
        Ok(proto::Disposition::Unspecified) | Err(_) => {
            return Err(ItemError::UnknownValue {
                field: "disposition",
                value: wire.disposition,
            });
        }
    };
    Ok(NewDelivery {
        id: id(DeliveryId::from_slice, &wire.id, "deliveries.id")?,
        endpoint: id(EndpointId::from_slice, &wire.endpoint, "deliveries.endpoint")?,
        disposition,
    })
}

fn claim(wire: &proto::Claim) -> Result<Claim, ItemError> {
    Ok(Claim {
        key: array(&wire.key, "claims.key")?,
        resource: array(&wire.resource, "claims.resource")?,
        fingerprint: array(&wire.fingerprint, "claims.fingerprint")?,
        expires_at: UnixMillis(wire.expires_at),
    })
}

fn outcome(wire: proto::Outcome) -> Result<Outcome, ItemError> {
    Ok(Outcome {
        delivery: id(DeliveryId::from_slice, &wire.delivery, "delivery")?,
        message: id(MessageId::from_slice, &wire.message, "message")?,
        endpoint: id(EndpointId::from_slice, &wire.endpoint, "endpoint")?,
        app: id(AppId::from_slice, &wire.app, "app")?,
        run: wire.run,
        attempts: wire.attempts,
        trigger: trigger_from_wire(wire.trigger)?,
        at: UnixMillis(wire.at),
        attempt: wire.attempt.map(attempt).transpose()?,
        next: next(wire.next.ok_or(ItemError::Missing { field: "next" })?)?,
    })
}

fn next(wire: proto::outcome::Next) -> Result<Next, ItemError> {
    use proto::outcome::Next as Wire;
    Ok(match wire {
        Wire::Delivered(proto::Delivered {}) => Next::Delivered,
        Wire::Retry(wire) => Next::Retry {
            delay: Duration::from_millis(wire.delay),
        },
        Wire::Exhausted(wire) => Next::Exhausted { gone: wire.gone },
        Wire::Cancelled(wire) => Next::Cancelled(cancel_from_wire(wire.reason)?),
        Wire::Deferred(wire) => Next::Deferred {
            reason: defer_from_wire(wire.reason)?,
            delay: Duration::from_millis(wire.delay),
        },
        Wire::InFlight(wire) => Next::InFlight {
            delay: Duration::from_millis(wire.delay),
        },
    })
}

fn attempt(wire: proto::Attempt) -> Result<Attempt, ItemError> {
    Ok(Attempt {
        id: id(AttemptId::from_slice, &wire.id, "attempt.id")?,
        started_at: UnixMillis(wire.started_at),
        duration: Duration::from_micros(wire.duration),
        class: class_from_wire(wire.class)?,
        status: small(wire.status, "attempt.status")?,
        response: wire.response,
        url: wire.url,
    })
}

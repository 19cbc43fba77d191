//! What the gateway and the workers tell the ledger. A [`Record`] is a fact about the past; the recorder turns
//! facts into rows. Each fact is idempotent: recorded twice, it is recorded once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{AppId, AttemptId, DeliveryId, EndpointId, MessageId};
use crate::message::{Message, Trigger};
use crate::time::UnixMillis;

/// One fact of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A message was accepted, or deliveries were made for an old one by hand.
    Accepted(Accepted),
    /// A delivery moved on.
    Outcome(Box<Outcome>),
}

/// A message and the deliveries that it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The message; for a resend, the same as recorded before.
    pub message: Arc<Message>,
    /// Its deliveries.
    pub deliveries: Vec<NewDelivery>,
    /// Why the deliveries were made.
    pub trigger: Trigger,
    /// Claims that become durable with the message; only the embedded set-up fills it, scaled out Redis holds them.
    pub claims: Vec<Claim>,
}

/// A delivery that an accepted message makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewDelivery {
    /// Its id.
    pub id: DeliveryId,
    /// Where to.
    pub endpoint: EndpointId,
    /// Where it is now.
    pub disposition: Disposition,
}

/// Where a new delivery is when its message is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// In a durable `deliver` queue: the broker holds it.
    Queued,
    /// In the in-process broker, which a crash empties: a leased waiting row stands for it from the start.
    Leased,
    /// In the store alone: it waits there for this reason.
    Waiting(DeferReason),
    /// In the store alone, to be sent in sequence.
    Ordered,
}

/// A promise that a key (an `Idempotency-Key` or an `eventId`, hashed with its application) names one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// SHA-256 of kind, application and key.
    pub key: [u8; 32],
    /// Id of the resource that the first request made.
    pub resource: [u8; 16],
    /// SHA-256 of the request; another body under the same key is an error.
    pub fingerprint: [u8; 32],
    /// When the promise ends.
    pub expires_at: UnixMillis,
}

/// What became of one run of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The delivery.
    pub delivery: DeliveryId,
    /// Its message.
    pub message: MessageId,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Its application.
    pub app: AppId,
    /// The run that this is the outcome of.
    pub run: u32,
    /// Attempts made, this one included if there was one.
    pub attempts: u32,
    /// Why the delivery was made.
    pub trigger: Trigger,
    /// When the worker knew, by its own clock.
    pub at: UnixMillis,
    /// The attempt, unless there was none (deferred, cancelled, our own failure).
    pub attempt: Option<Attempt>,
    /// What comes next.
    pub next: Next,
}

/// What comes after an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A 2xx: done.
    Delivered,
    /// Try again after the delay; the attempt counts.
    Retry {
        /// From the end of the attempt.
        delay: Duration,
    },
    /// The schedule is used up: done. The endpoint may be paused or disabled by it.
    Exhausted {
        /// The endpoint answered 410 Gone: disable it.
        gone: bool,
    },
    /// Nobody wants it any more: done.
    Cancelled(CancelReason),
    /// Not tried: wait. No attempt counts.
    Deferred {
        /// Why.
        reason: DeferReason,
        /// How long at least.
        delay: Duration,
    },
    /// A slow attempt goes on without its envelope; if no outcome follows within the delay, try again.
    InFlight {
        /// The rest of the attempt's deadline and a margin.
        delay: Duration,
    },
}

/// Why a delivery was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CancelReason {
    /// The endpoint was disabled.
    EndpointDisabled = 1,
    /// The endpoint was deleted.
    EndpointDeleted = 2,
    /// The application was deleted.
    ApplicationDeleted = 3,
    /// The body's retention ended first.
    PayloadExpired = 4,
    /// The body was expunged by hand.
    PayloadExpunged = 5,
    /// It came back to a worker five times alone and was parked.
    Parked = 6,
    /// Its message was never recorded: the request was refused after a part of it was on its way.
    MessageMissing = 7,
}

/// Why a delivery waits in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DeferReason {
    /// Its last attempt failed.
    Retry = 1,
    /// The endpoint's rate limit.
    Rate = 2,
    /// The endpoint's breaker is open.
    Breaker = 3,
    /// The endpoint is paused.
    Paused = 4,
    /// Too much is queued for the endpoint at the worker.
    Queue = 5,
    /// Others wait for the endpoint already; it joins them.
    Backlog = 6,
    /// The endpoint is `ordered`.
    Ordered = 7,
    /// A slow attempt is on its way.
    InFlight = 8,
    /// A failure of ours (signing, resolver, configuration out of reach), or an endpoint that the worker knows as gone or
    /// disabled: the store decides.
    Ours = 9,
    /// Taken back from the stray queue.
    Stray = 10,
    /// A manual delivery.
    Manual = 11,
    /// In the in-process broker.
    Leased = 12,
    /// The worker shut down before trying it.
    Drain = 13,
}

impl DeferReason {
    /// Every reason, for metrics and tests.
    pub const ALL: [Self; 13] = [
        Self::Retry,
        Self::Rate,
        Self::Breaker,
        Self::Paused,
        Self::Queue,
        Self::Backlog,
        Self::Ordered,
        Self::InFlight,
        Self::Ours,
        Self::Stray,
        Self::Manual,
        Self::Leased,
        Self::Drain,
    ];

    /// From the stored number.
    pub fn from_stored(value: i16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|reason| i16::from(*reason as u8) == value)
    }

    /// The name in metrics, the API and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Rate => "rate",
            Self::Breaker => "breaker",
            Self::Paused => "paused",
            Self::Queue => "queue",
            Self::Backlog => "backlog",
            Self::Ordered => "ordered",
            Self::InFlight => "in_flight",
            Self::Ours => "ours",
            Self::Stray => "stray",
            Self::Manual => "manual",
            Self::Leased => "leased",
            Self::Drain => "drain",
        }
    }
}

impl CancelReason {
    /// From the stored number.
    pub const fn from_stored(value: i16) -> Option<Self> {
        match value {
            1 => Some(Self::EndpointDisabled),
            2 => Some(Self::EndpointDeleted),
            3 => Some(Self::ApplicationDeleted),
            4 => Some(Self::PayloadExpired),
            5 => Some(Self::PayloadExpunged),
            6 => Some(Self::Parked),
            7 => Some(Self::MessageMissing),
            _ => None,
        }
    }
}

/// What an attempt met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AttemptClass {
    /// 2xx.
    Success = 0,
    /// An HTTP status other than 2xx.
    Status = 1,
    /// The deadline passed.
    Timeout = 2,
    /// No connection.
    Connect = 3,
    /// The TLS handshake failed.
    Tls = 4,
    /// The name does not resolve.
    Dns = 5,
    /// The address is not allowed.
    Blocked = 6,
    /// The peer broke the protocol or the connection.
    Http = 7,
}

impl AttemptClass {
    /// From the stored number.
    pub const fn from_stored(value: i16) -> Option<Self> {
        match value {
            0 => Some(Self::Success),
            1 => Some(Self::Status),
            2 => Some(Self::Timeout),
            3 => Some(Self::Connect),
            4 => Some(Self::Tls),
            5 => Some(Self::Dns),
            6 => Some(Self::Blocked),
            7 => Some(Self::Http),
            _ => None,
        }
    }
}

/// One POST and what came of it. A failure of ours never makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its id, made when it started.
    pub id: AttemptId,
    /// When it started, by the worker's clock.
    pub started_at: UnixMillis,
    /// How long it took.
    pub duration: Duration,
    /// What it met.
    pub class: AttemptClass,
    /// The status; 0 when there was no response.
    pub status: u16,
    /// First 4 KiB of the response body, or the error in words when there was no response.
    pub response: Bytes,
    /// Where it went.
    pub url: String,
}

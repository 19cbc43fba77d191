//! A message, and the job that delivers it to one endpoint.

use std::sync::Arc;

use bytes::Bytes;

use crate::ids::{AppId, DeliveryId, EndpointId, MessageId};
use crate::time::UnixMillis;

/// One accepted event. What was received is what is signed and sent, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `webhook-id` of every attempt.
    pub id: MessageId,
    /// The application that sent it.
    pub app: AppId,
    /// Its event type.
    pub event_type: String,
    /// The caller's own id, unique for 24 hours within the application.
    pub event_id: Option<String>,
    /// Channels; empty means none.
    pub channels: Vec<String>,
    /// Content-Type of the payload.
    pub content_type: String,
    /// The body.
    pub payload: Bytes,
    /// When the gateway accepted it, by the gateway's clock.
    pub accepted_at: UnixMillis,
    /// Days that the payload is kept; the setting's default when absent.
    pub payload_retention_days: Option<u16>,
    /// W3C trace context of the ingest request.
    pub traceparent: Option<String>,
}

/// Why a delivery was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Trigger {
    /// By accepting the message.
    #[default]
    Scheduled = 0,
    /// By a person: a resend or a recovery.
    Manual = 1,
}

/// Where a delivery stands. The last three are terminal and final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeliveryState {
    /// Accepted; its first attempt has not been recorded.
    Pending = 1,
    /// At least one attempt failed and another will come.
    Retrying = 3,
    /// A 2xx was seen.
    Delivered = 0,
    /// The retry schedule is used up.
    Exhausted = 2,
    /// Its endpoint or its body went away.
    Cancelled = 4,
}

impl DeliveryState {
    /// Whether nothing can change it any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Delivered | Self::Exhausted | Self::Cancelled)
    }

    /// From the stored number.
    pub const fn from_stored(value: i16) -> Option<Self> {
        match value {
            0 => Some(Self::Delivered),
            1 => Some(Self::Pending),
            2 => Some(Self::Exhausted),
            3 => Some(Self::Retrying),
            4 => Some(Self::Cancelled),
            _ => None,
        }
    }
}

/// One delivery on its way to a worker: the unit of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The delivery.
    pub delivery: DeliveryId,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// What to send.
    pub message: Arc<Message>,
    /// Which hand-out of the waiting row this is; 0 comes straight from the gateway.
    pub run: u32,
    /// Attempts made before this one.
    pub attempts: u32,
    /// Why the delivery was made.
    pub trigger: Trigger,
    /// Tests whether a broken endpoint works again.
    pub probe: bool,
    /// The scheduler took its rate token already.
    pub has_token: bool,
    /// Part of an `ordered` endpoint's run: send in the envelope's order, stop at the first failure.
    pub ordered: bool,
    /// When the scheduler's lease ends, by the store's clock; absent for run 0.
    pub lease_until: Option<UnixMillis>,
}

//! The domain: ids, messages, endpoints, deliveries, journal records and the retry schedule.
//!
//! Pure: no I/O, no clock, no global randomness; both are passed in. Every other crate speaks in these
//! types, so a word means the same thing in the gateway, on the wire and in the store.
//!
//! - [`ids`]: typed, prefixed, time-sortable identifiers.
//! - [`config`]: applications, endpoints, event types, and the [`AppSnapshot`] that roles cache.
//! - [`message`]: a [`Message`] and the [`Job`] that delivers it to one endpoint.
//! - [`journal`]: what the gateway and the workers tell the ledger ([`Record`]).
//! - [`retry`]: the retry schedule and its jitter.

pub mod config;
pub mod ids;
pub mod journal;
pub mod message;
pub mod retry;
pub mod time;

pub use config::{
    AppSnapshot, Application, Endpoint, EndpointSecret, EventType, ExhaustedPolicy, HeaderNames,
    is_subscribed,
};
pub use ids::{AppId, AttemptId, DeliveryId, EndpointId, EventTypeId, IdError, KeyId, MessageId, TaskId};
pub use journal::{
    Accepted, Attempt, AttemptClass, CancelReason, Claim, DeferReason, Disposition, NewDelivery, Next,
    Outcome, Record,
};
pub use message::{DeliveryState, Job, Message, Trigger};
pub use retry::RetrySchedule;
pub use time::UnixMillis;

//! The broker between the roles: a trait, its in-process implementation, and the gatherer that forms envelopes.
//!
//! The broker holds what is ready. A queue carries *frames*: encoded envelopes of jobs or batches of journal
//! records (see `postrider-wire`). Guarantees that every implementation gives, pinned by [`conformance`]:
//!
//! - [`Broker::publish`] returns `Ok` only once the frame is safe: confirmed by a quorum (RabbitMQ), or, in
//!   process, queued (`deliver`, `retry`) or acknowledged by its consumer (`journal`, whose consumer is the
//!   recorder, so that a confirm means a commit).
//! - A frame whose [`Receipt`] is not acknowledged comes back, with a higher delivery count.
//! - A [`Subscription`] outlives connections: it ends only when dropped or when the broker is closed.
//! - The journal has one active consumer, and hands out frames in the order in which they were published.
//!
//! Roles publish through [`JobPublisher`] and [`JournalPublisher`], which turn many small calls into few frames.

mod api;
pub mod conformance;
mod gather;
mod in_process;

pub use api::{
    Acknowledge, Broker, BrokerError, Health, Incoming, PublishError, Queue, QueueLook, Receipt,
    Subscription, SubscriptionEnds,
};
pub use gather::{Confirmed, GatherSettings, JobPublisher, JournalPublisher, Pace, Reserved};
pub use in_process::{InProcess, InProcessSettings};

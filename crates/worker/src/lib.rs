//! The worker: signed POSTs, one attempt at a time.
//!
//! A delivery's way through it: [`intake`] takes a frame and room for it; [`dispatch`] drops what is at work here
//! already, asks the limits (done mark, backlog, breaker, rate) and looks at the configuration; the [`board`] gives
//! every application and endpoint its turn, as a [`unit`]; [`attempt`] signs, POSTs and [`classify`]s; [`finish`] takes
//! what has ended, in batches: it writes the done marks, publishes the outcomes to the journal and, once that is
//! confirmed, settles the deliveries' [`envelope`]s.
//!
//! Invariants:
//! - A frame is acknowledged only after each of its deliveries has a confirmed outcome.
//! - A delivery is held for one attempt at most. What cannot be tried within a second is deferred to the store; an
//!   attempt that takes longer than a second is journaled as in flight and leaves its envelope.
//! - A failure of ours never counts as an attempt.
//! - Everything held is bounded: jobs, bytes, slots over all, per host and per endpoint.
//! - While the broker does not take outcomes, no attempt starts.
//! - A panic costs an attempt at most: what the task held comes back ([`duty`]).
//! - Leases are judged by the store's [`clock`].

mod attempt;
mod board;
mod classify;
mod clock;
mod config;
mod dispatch;
mod duty;
mod envelope;
mod finish;
mod intake;
mod room;
mod run;
mod suspect;
mod target;
#[cfg(test)]
mod tests;
mod trace;
mod unit;

use std::sync::Arc;
use std::time::Duration;

use postrider_broker::{Broker, JournalPublisher};
use postrider_limits::SharedLimits;
use postrider_model::RetrySchedule;
use postrider_store::SharedStore;
use postrider_telemetry::Metrics;
use postrider_telemetry::trace::Tracer;

pub use run::run;

/// Settings of the worker.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Shards of the `deliver` and `retry` queues.
    pub shards: u16,
    /// Unacknowledged frames of each queue, at most.
    pub prefetch: u16,
    /// Deliveries held at once, tried or waiting for their turn.
    pub held_jobs_max: usize,
    /// Bytes of frames held at once.
    pub held_bytes_max: usize,
    /// Attempts in flight at once.
    pub slots: usize,
    /// Attempts in flight at once to one host; slow endpoints share a quarter of it.
    pub host_slots: usize,
    /// Attempts in flight at once to one endpoint, at most; adaptive below.
    pub endpoint_slots: usize,
    /// Deadline of an attempt where the endpoint sets none.
    pub timeout: Duration,
    /// Retry schedule where the endpoint sets none.
    pub retry_schedule: RetrySchedule,
    /// An attempt that runs longer leaves its envelope.
    pub slow_after: Duration,
    /// What would wait longer for its endpoint is deferred.
    pub queue_max_wait: Duration,
    /// How long a draining worker waits for what is in flight.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            shards: 4,
            prefetch: 64,
            held_jobs_max: 5_000,
            held_bytes_max: 256 * 1024 * 1024,
            slots: 4_096,
            host_slots: 256,
            endpoint_slots: 256,
            timeout: Duration::from_secs(15),
            retry_schedule: RetrySchedule::default(),
            slow_after: Duration::from_secs(1),
            queue_max_wait: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(25),
        }
    }
}

/// What the worker leans on.
#[derive(Clone)]
pub struct Deps {
    /// Queues to consume; also takes suspect jobs back, singly.
    pub broker: Arc<dyn Broker>,
    /// Outcomes.
    pub journal: JournalPublisher,
    /// Configuration on a cache miss; nothing else.
    pub store: SharedStore,
    /// Gates, done marks, breakers.
    pub limits: SharedLimits,
    /// POSTs.
    pub client: postrider_egress::Client,
    /// Which addresses may be reached.
    pub policy: postrider_egress::Policy,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Makes spans, when traces are on.
    pub tracer: Option<Tracer>,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deps")
    }
}

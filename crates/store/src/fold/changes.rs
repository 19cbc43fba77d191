//! What a fold decides: rows to write, as sets, so that an adapter writes each table once a batch.

use std::collections::HashMap;
use std::sync::Arc;

use postrider_model::{
    AppId, Attempt, CancelReason, Claim, DeferReason, DeliveryId, DeliveryState, EndpointId, Message,
    MessageId, Trigger, UnixMillis,
};

/// Milliseconds of a counter's bucket: one hour of message creation.
pub const COUNTER_BUCKET_MS: i64 = 3_600_000;

/// What to write. Apply all of it or nothing.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Messages; those that the store has are passed over.
    pub messages: Vec<Arc<Message>>,
    /// Deliveries to insert or, when the store has them, to update (state, attempts, cancel reason).
    pub deliveries: HashMap<DeliveryId, DeliveryPut>,
    /// Attempts; those that the store has are passed over.
    pub attempts: Vec<AttemptPut>,
    /// Waiting rows to write (`Some`) or to remove.
    pub waiting: HashMap<DeliveryId, Option<WaitingPut>>,
    /// The earliest due time that an endpoint's backlog row must have: `next_due = min(next_due, this)`.
    pub wake: HashMap<EndpointId, (AppId, UnixMillis)>,
    /// Counter moves by endpoint and hour (bucket start in milliseconds).
    pub counters: HashMap<(EndpointId, i64), StateCounts>,
    /// New values of `failing_since`.
    pub failing: HashMap<EndpointId, (AppId, Option<UnixMillis>)>,
    /// Endpoints to disable.
    pub disable: HashMap<EndpointId, (AppId, DisableReason)>,
    /// Endpoints to pause.
    pub pause: HashMap<EndpointId, AppId>,
    /// Claims to store (embedded set-up).
    pub claims: Vec<Claim>,
    /// The sequence after this batch.
    pub last_seq: i64,
    /// Outcomes that were stale.
    pub stale: usize,
}

/// Why an endpoint is disabled by the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DisableReason {
    /// It answered 410 Gone.
    Gone,
    /// It has done nothing but fail for too long.
    Failing,
}

/// A delivery's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryPut {
    /// Its id.
    pub id: DeliveryId,
    /// Its message.
    pub message: MessageId,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Its application.
    pub app: AppId,
    /// Where it stands.
    pub state: DeliveryState,
    /// Attempts made.
    pub attempts: u32,
    /// Why it was made.
    pub trigger: Trigger,
    /// Why it was cancelled, if it was.
    pub cancelled: Option<CancelReason>,
    /// The store does not have it.
    pub is_new: bool,
}

/// An attempt's row.
#[derive(Clone, Debug)]
pub struct AttemptPut {
    /// The attempt.
    pub attempt: Attempt,
    /// Its delivery.
    pub delivery: DeliveryId,
    /// Its message.
    pub message: MessageId,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Its application.
    pub app: AppId,
    /// Why its delivery was made.
    pub trigger: Trigger,
}

/// A waiting row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingPut {
    /// The delivery.
    pub delivery: DeliveryId,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Its application.
    pub app: AppId,
    /// Its message.
    pub message: MessageId,
    /// Why the delivery was made.
    pub trigger: Trigger,
    /// When it is due, or its lease ends.
    pub due_at: UnixMillis,
    /// Why it waits.
    pub reason: DeferReason,
    /// The current run.
    pub run: u32,
    /// Attempts made.
    pub attempts: u32,
    /// Somebody works on it until `due_at`.
    pub leased: bool,
    /// When it was last leased.
    pub leased_at: Option<UnixMillis>,
    /// Place in an `ordered` endpoint's sequence; 0 without one.
    pub seq: i64,
}

/// Moves of an endpoint's counters, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCounts {
    /// Pending.
    pub pending: i64,
    /// Retrying.
    pub retrying: i64,
    /// Delivered.
    pub delivered: i64,
    /// Exhausted.
    pub exhausted: i64,
    /// Cancelled.
    pub cancelled: i64,
}

impl StateCounts {
    /// Moves the counter of `state`.
    pub fn add(&mut self, state: DeliveryState, by: i64) {
        match state {
            DeliveryState::Pending => self.pending += by,
            DeliveryState::Retrying => self.retrying += by,
            DeliveryState::Delivered => self.delivered += by,
            DeliveryState::Exhausted => self.exhausted += by,
            DeliveryState::Cancelled => self.cancelled += by,
        }
    }
}

impl Changes {
    /// Moves the counter of a delivery of a message made at `at`.
    pub fn count(&mut self, endpoint: EndpointId, at: UnixMillis, state: DeliveryState, by: i64) {
        let bucket = at.0.div_euclid(COUNTER_BUCKET_MS) * COUNTER_BUCKET_MS;
        self.counters
            .entry((endpoint, bucket))
            .or_default()
            .add(state, by);
    }
}

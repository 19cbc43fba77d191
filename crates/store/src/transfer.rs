//! A whole store on its way to another: portions of rows, secrets and payloads opened, in the order in which a target
//! takes them. Rows keep their ids, so that ids which producers and receivers know stay true.
//!
//! Leases are not moved: a row that was leased is due, as after a restart. Nor are the counts of deaths and of trials, by which
//! the embedded set-up finds a delivery that kills it: the broker counts for the scaled-out one.

use postrider_model::{Application, Claim, Endpoint, EndpointId, EventType, UnixMillis};

use crate::fold::{AttemptPut, DeliveryPut, StateCounts, WaitingPut};
use crate::{MessageRow, ParkedRow, StoredKey, TaskRow};

/// An application, deleted or not.
#[derive(Clone, Debug)]
pub struct MovedApplication {
    /// The application.
    pub application: Application,
    /// Its configuration's version.
    pub version: u64,
    /// Set once deleted.
    pub deleted_at: Option<UnixMillis>,
}

/// An endpoint, deleted or not.
#[derive(Clone, Debug)]
pub struct MovedEndpoint {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Since when it has done nothing but fail.
    pub failing_since: Option<UnixMillis>,
    /// Set once deleted.
    pub deleted_at: Option<UnixMillis>,
}

/// An endpoint's deliveries by state, of messages of one hour.
#[derive(Clone, Copy, Debug)]
pub struct MovedCounter {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The hour's start, in milliseconds.
    pub hour: i64,
    /// How many.
    pub counts: StateCounts,
}

/// Rows of one kind.
#[derive(Clone, Debug)]
pub enum Portion {
    /// Applications.
    Applications(Vec<MovedApplication>),
    /// Endpoints.
    Endpoints(Vec<MovedEndpoint>),
    /// Event types.
    EventTypes(Vec<EventType>),
    /// API keys, revoked ones too.
    Keys(Vec<StoredKey>),
    /// The last place given in any `ordered` endpoint's sequence.
    Sequence(i64),
    /// Messages with their payloads.
    Messages(Vec<MessageRow>),
    /// Deliveries.
    Deliveries(Vec<DeliveryPut>),
    /// Attempts.
    Attempts(Vec<AttemptPut>),
    /// What waits.
    Waiting(Vec<WaitingPut>),
    /// Counters.
    Counters(Vec<MovedCounter>),
    /// Claims of idempotency keys and event ids.
    Claims(Vec<Claim>),
    /// Background tasks.
    Tasks(Vec<TaskRow>),
    /// What was parked.
    Parked(Vec<ParkedRow>),
}

impl Portion {
    /// What it holds, for people, and how many of it.
    pub fn describe(&self) -> (&'static str, usize) {
        match self {
            Self::Applications(rows) => ("applications", rows.len()),
            Self::Endpoints(rows) => ("endpoints", rows.len()),
            Self::EventTypes(rows) => ("event types", rows.len()),
            Self::Keys(rows) => ("API keys", rows.len()),
            Self::Sequence(_) => ("sequence", 1),
            Self::Messages(rows) => ("messages", rows.len()),
            Self::Deliveries(rows) => ("deliveries", rows.len()),
            Self::Attempts(rows) => ("attempts", rows.len()),
            Self::Waiting(rows) => ("waiting deliveries", rows.len()),
            Self::Counters(rows) => ("counters", rows.len()),
            Self::Claims(rows) => ("claims", rows.len()),
            Self::Tasks(rows) => ("background tasks", rows.len()),
            Self::Parked(rows) => ("parked", rows.len()),
        }
    }
}

//! The recorder's rules, pure: what a batch of facts does to the rows that a store holds.
//!
//! A store's adapter calls [`touched`] to learn which rows to load, loads them into [`Known`], calls [`fold`], and
//! applies the [`Changes`], all in one transaction. So both adapters obey the same rules, and the rules are tested
//! without a database.
//!
//! The rules:
//! 1. A fact recorded twice is recorded once: deliveries, attempts and messages have ids of their own.
//! 2. A terminal state is final. A later fact adds its attempt and nothing else.
//! 3. Only the current run moves or removes a waiting row. A fact of an earlier run is stale: it adds its attempt. But a
//!    success of any run ends the delivery and removes the row: a journal that lags longer than a lease brings it after the
//!    next run was handed out, whose own outcome then finds a terminal state.
//! 4. Facts may come in any order: an outcome before its message makes the delivery.
//! 5. A due time is at most the store's clock plus the delay, and at least the lease's start plus the delay, so that
//!    a worker whose clock is wrong can neither burn the retries nor postpone them. That of an attempt in flight counts from the
//!    store's clock alone: a journal that lags brings its outcome as late.

mod changes;
mod outcome;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use postrider_model::{
    Accepted, AppId, DeferReason, DeliveryId, DeliveryState, Disposition, EndpointId, Record, Trigger,
    UnixMillis,
};

pub use changes::{
    AttemptPut, COUNTER_BUCKET_MS, Changes, DeliveryPut, DisableReason, StateCounts, WaitingPut,
};

/// How long the row that stands for a delivery in the in-process broker is leased: far longer than its bounded
/// queue takes to drain, and only a net, since a restart releases all such leases at once.
pub const IN_PROCESS_LEASE: Duration = Duration::from_secs(600);

/// What the fold needs to know besides the batch.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Deliveries of [`Touched::deliveries`] that the store has.
    pub deliveries: HashMap<DeliveryId, KnownDelivery>,
    /// Endpoints of [`Touched::endpoints`] that the store has, deleted ones too until retention removes them.
    pub endpoints: HashMap<EndpointId, KnownEndpoint>,
}

/// A delivery as the store has it.
#[derive(Clone, Copy, Debug)]
pub struct KnownDelivery {
    /// Where it stands.
    pub state: DeliveryState,
    /// Attempts recorded.
    pub attempts: u32,
    /// Its waiting row.
    pub waiting: Option<KnownWaiting>,
}

/// A waiting row as the store has it.
#[derive(Clone, Copy, Debug)]
pub struct KnownWaiting {
    /// The current run.
    pub run: u32,
    /// When it is due, or its lease ends.
    pub due_at: UnixMillis,
    /// When it was last leased.
    pub leased_at: Option<UnixMillis>,
    /// Place in an `ordered` endpoint's sequence; 0 without one.
    pub seq: i64,
}

/// What the fold needs to know of an endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct KnownEndpoint {
    /// Paused, disabled or deleted: nothing is released, so there is no one to wake.
    pub held: bool,
    /// Disabled or deleted already.
    pub disabled: bool,
    /// What waits for it is handed out a run at a time: when one ends, the next may go.
    pub ordered: bool,
    /// An exhausted head pauses it (`ordered` endpoints with that policy).
    pub pause_when_exhausted: bool,
    /// Start of the first failure since the last success.
    pub failing_since: Option<UnixMillis>,
}

/// Settings of the fold.
#[derive(Clone, Copy, Debug)]
pub struct FoldSettings {
    /// An endpoint that has done nothing but fail for so long is disabled.
    pub disable_after: Duration,
}

/// Which rows the adapter must load (and lock) before it folds.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    /// Deliveries, each once, sorted so that several transactions lock in the same order.
    pub deliveries: Vec<DeliveryId>,
    /// Endpoints, each once, sorted.
    pub endpoints: Vec<EndpointId>,
    /// Whether the batch needs the sequence of `ordered` endpoints.
    pub sequence: bool,
}

/// Collects what a batch touches.
pub fn touched(batch: &[Record]) -> Touched {
    let mut deliveries = HashSet::with_capacity(batch.len());
    let mut endpoints = HashSet::new();
    let mut sequence = false;
    for record in batch {
        match record {
            Record::Accepted(accepted) => {
                for delivery in &accepted.deliveries {
                    deliveries.insert(delivery.id);
                    endpoints.insert(delivery.endpoint);
                    sequence |= delivery.disposition == Disposition::Ordered;
                }
            }
            Record::Outcome(outcome) => {
                deliveries.insert(outcome.delivery);
                endpoints.insert(outcome.endpoint);
            }
        }
    }
    let mut touched = Touched {
        deliveries: deliveries.into_iter().collect(),
        endpoints: endpoints.into_iter().collect(),
        sequence,
    };
    touched.deliveries.sort_unstable();
    touched.endpoints.sort_unstable();
    touched
}

/// Folds a batch into changes. `now` is the store's clock; `last_seq` the last number given in the sequence.
pub fn fold(
    batch: &[Record],
    known: &Known,
    now: UnixMillis,
    last_seq: i64,
    settings: FoldSettings,
) -> Changes {
    let mut folder = Folder {
        known,
        now,
        settings,
        current: HashMap::with_capacity(batch.len()),
        changes: Changes {
            last_seq,
            ..Changes::default()
        },
    };
    for record in batch {
        match record {
            Record::Accepted(accepted) => folder.accept(accepted),
            Record::Outcome(outcome) => folder.outcome(outcome),
        }
    }
    folder.finish()
}

/// A delivery in the course of the fold: what the store has, moved on by the batch so far.
#[derive(Clone, Copy, Debug)]
struct Current {
    state: DeliveryState,
    attempts: u32,
    waiting: Option<KnownWaiting>,
}

struct Folder<'a> {
    known: &'a Known,
    now: UnixMillis,
    settings: FoldSettings,
    current: HashMap<DeliveryId, Current>,
    changes: Changes,
}

impl Folder<'_> {
    fn accept(&mut self, accepted: &Accepted) {
        self.changes.claims.extend(accepted.claims.iter().cloned());
        if accepted.trigger == Trigger::Scheduled {
            self.changes.messages.push(accepted.message.clone());
        }
        for delivery in &accepted.deliveries {
            let known =
                self.known.deliveries.contains_key(&delivery.id) || self.current.contains_key(&delivery.id);
            if known {
                continue;
            }
            self.create(
                DeliveryPut {
                    id: delivery.id,
                    message: accepted.message.id,
                    endpoint: delivery.endpoint,
                    app: accepted.message.app,
                    state: DeliveryState::Pending,
                    attempts: 0,
                    trigger: accepted.trigger,
                    cancelled: None,
                    is_new: true,
                },
                None,
            );
            if let Some((reason, lease)) = initial_wait(delivery.disposition) {
                let seq = if delivery.disposition == Disposition::Ordered {
                    self.changes.last_seq += 1;
                    self.changes.last_seq
                } else {
                    0
                };
                let row = KnownWaiting {
                    run: 0,
                    due_at: self.now.plus(lease),
                    leased_at: (reason == DeferReason::Leased).then_some(self.now),
                    seq,
                };
                self.wait(delivery.id, accepted.message.app, delivery.endpoint, row, reason);
            }
        }
    }

    /// Starts to track a delivery that the store does not have.
    fn create(&mut self, put: DeliveryPut, waiting: Option<KnownWaiting>) {
        self.changes
            .count(put.endpoint, put.message.created_at(), put.state, 1);
        self.current.insert(
            put.id,
            Current {
                state: put.state,
                attempts: put.attempts,
                waiting,
            },
        );
        self.changes.deliveries.insert(put.id, put);
    }

    /// Writes a delivery's waiting row and wakes its endpoint for it.
    fn wait(
        &mut self,
        id: DeliveryId,
        app: AppId,
        endpoint: EndpointId,
        row: KnownWaiting,
        reason: DeferReason,
    ) {
        let Some(current) = self.current.get_mut(&id) else {
            return;
        };
        current.waiting = Some(row);
        let attempts = current.attempts;
        let Some(message) = self
            .changes
            .deliveries
            .get(&id)
            .map(|put| (put.message, put.trigger))
        else {
            return;
        };
        let leased = matches!(reason, DeferReason::Leased | DeferReason::InFlight);
        self.changes.waiting.insert(
            id,
            Some(WaitingPut {
                delivery: id,
                endpoint,
                app,
                message: message.0,
                trigger: message.1,
                due_at: row.due_at,
                reason,
                run: row.run,
                attempts,
                leased,
                leased_at: row.leased_at,
                seq: row.seq,
            }),
        );
        let held = self
            .known
            .endpoints
            .get(&endpoint)
            .is_some_and(|known| known.held);
        let due = if held { UnixMillis::NEVER } else { row.due_at };
        self.changes
            .wake
            .entry(endpoint)
            .and_modify(|wake| wake.1 = wake.1.min(due))
            .or_insert((app, due));
    }

    fn finish(mut self) -> Changes {
        let disable_before = self.now.minus(self.settings.disable_after);
        for (endpoint, (app, since)) in &self.changes.failing {
            let Some(known) = self.known.endpoints.get(endpoint) else {
                continue;
            };
            // Days that begin in this batch do not end in it: a failure that is recorded days late would disable an
            // endpoint that is well.
            let has_failed_on = known.failing_since.is_some() && known.failing_since == *since;
            if !known.disabled && has_failed_on && since.is_some_and(|since| since <= disable_before) {
                self.changes
                    .disable
                    .entry(*endpoint)
                    .or_insert((*app, DisableReason::Failing));
            }
        }
        self.changes.failing.retain(|endpoint, (_, since)| {
            self.known
                .endpoints
                .get(endpoint)
                .is_some_and(|known| known.failing_since != *since)
        });
        self.changes
    }
}

fn initial_wait(disposition: Disposition) -> Option<(DeferReason, Duration)> {
    match disposition {
        Disposition::Queued => None,
        Disposition::Leased => Some((DeferReason::Leased, IN_PROCESS_LEASE)),
        Disposition::Waiting(reason) => Some((reason, Duration::ZERO)),
        Disposition::Ordered => Some((DeferReason::Ordered, Duration::ZERO)),
    }
}

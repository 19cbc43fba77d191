//! Who answers for a delivery that is at work here. A task that panics must lose neither a slot nor a part of an
//! envelope: its deliveries are given up, and their frames come back from the broker.

use std::sync::Arc;
use std::time::Instant;

use postrider_model::{DeliveryId, EndpointId, Job};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::board::{Slot, Verdict};
use crate::envelope::Share;
use crate::run::Context;

/// A run of a delivery.
pub(crate) type Key = (DeliveryId, u32);

pub(crate) fn key(job: &Job) -> Key {
    (job.delivery, job.run)
}

/// Answers for a delivery, and goes with it to whoever works on it. Dropped before the delivery was handed on or ended,
/// which only a panic does (or the worker's end), it gives it up.
pub(crate) struct Duty {
    context: Arc<Context>,
    key: Option<Key>,
    /// The drain waits for it, or who else is told of its end.
    watched: TaskTrackerToken,
}

impl Duty {
    pub(crate) fn new(context: &Arc<Context>, job: &Job) -> Self {
        Self {
            context: context.clone(),
            key: Some(key(job)),
            watched: context.tasks.token(),
        }
    }

    /// Who waits for the tracker, a task for which the drain waits, waits for this one's end.
    pub(crate) fn watched_by(mut self, tracker: &TaskTracker) -> Self {
        self.watched = tracker.token();
        self
    }

    /// Another one answers for the delivery now.
    pub(crate) fn handed_on(mut self) {
        self.key = None;
    }

    /// Ends the delivery's run here. Keep this until what it returns is settled, for whoever waits for it.
    pub(crate) fn end(&mut self) -> Vec<Share> {
        self.key
            .take()
            .map(|key| self.context.active.end(key))
            .unwrap_or_default()
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else {
            return;
        };
        if self.context.active.give_up(key) && std::thread::panicking() {
            self.context.deps.metrics.our_failure("panic");
            tracing::error!(delivery.id = %key.0, "a task panicked; its delivery's frame comes back");
        }
    }
}

/// A slot of the board; it goes back however its holder ends.
pub(crate) struct Seat {
    context: Arc<Context>,
    slot: Option<Slot>,
}

impl Seat {
    pub(crate) fn new(context: &Arc<Context>, slot: Slot) -> Self {
        Self {
            context: context.clone(),
            slot: Some(slot),
        }
    }

    /// The next attempt of a run begins in this slot.
    pub(crate) fn begin(&mut self) {
        if let Some(slot) = &mut self.slot {
            slot.begin(Instant::now());
        }
    }

    /// The attempt under way is a slow one.
    pub(crate) fn mark_slow(&mut self) {
        if let Some(slot) = &mut self.slot {
            self.context.board.lock().mark_slow(slot);
        }
    }

    /// Gives the slot back with what was learnt, and starts whose turn it is.
    pub(crate) fn done(mut self, verdict: Verdict) {
        self.end(verdict);
        self.context.pump();
    }

    fn end(&mut self, verdict: Verdict) {
        if let Some(slot) = self.slot.take() {
            self.context.board.lock().done(&slot, verdict, Instant::now());
        }
    }
}

impl Drop for Seat {
    // No pump: the board is swept several times a second.
    fn drop(&mut self) {
        self.end(Verdict::Untried);
    }
}

/// A place on the board kept for a delivery, so that a rate token is taken only for one that the board will hold.
pub(crate) struct Place {
    context: Arc<Context>,
    endpoint: Option<EndpointId>,
}

impl Place {
    /// # Errors
    /// When there is none: how long the delivery should wait.
    pub(crate) fn keep(context: &Arc<Context>, endpoint: EndpointId) -> Result<Self, std::time::Duration> {
        context.board.lock().reserve(endpoint, Instant::now())?;
        Ok(Self {
            context: context.clone(),
            endpoint: Some(endpoint),
        })
    }

    /// What it was kept for is about to be pushed.
    pub(crate) fn used(mut self) {
        self.endpoint = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(endpoint) = self.endpoint.take() {
            self.context.board.lock().release(endpoint);
        }
    }
}

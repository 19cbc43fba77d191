//! One outcome: what it does to its delivery, its waiting row and its endpoint.

use std::time::Duration;

use postrider_model::{AttemptClass, CancelReason, DeferReason, DeliveryState, Next, Outcome, UnixMillis};

use super::{AttemptPut, Current, DeliveryPut, DisableReason, Folder, KnownWaiting};

impl Folder<'_> {
    pub(super) fn outcome(&mut self, outcome: &Outcome) {
        let is_repeat = self
            .attempts_on_record(outcome)
            .is_some_and(|seen| outcome.attempts <= seen);
        let current = self.track(outcome);
        self.add_attempt(outcome, is_repeat || current.state.is_terminal());
        let is_earlier = current.waiting.is_some_and(|row| outcome.run < row.run);
        // The receiver has it, whichever run brought it (rule 3).
        let stale = is_earlier && outcome.next != Next::Delivered;
        if current.state.is_terminal() || stale {
            self.changes.stale += 1;
            return;
        }
        match outcome.next {
            Next::Delivered => self.end(outcome, DeliveryState::Delivered, None),
            Next::Cancelled(reason) => self.end(outcome, DeliveryState::Cancelled, Some(reason)),
            Next::Exhausted { gone } => {
                self.end(outcome, DeliveryState::Exhausted, None);
                self.punish(outcome, gone);
            }
            Next::Retry { delay } => {
                self.set_state(outcome, DeliveryState::Retrying, None);
                self.reschedule(outcome, current.waiting, outcome.at, delay, DeferReason::Retry);
            }
            Next::Deferred { reason, delay } => {
                self.reschedule(outcome, current.waiting, outcome.at, delay, reason);
            }
            // It came after the outcome that it announces, which stands.
            Next::InFlight { .. } if current.attempts > outcome.attempts => self.changes.stale += 1,
            Next::InFlight { delay } => {
                // Counted from now: if this came late, the outcome that ends it comes as late.
                self.reschedule(outcome, current.waiting, self.now, delay, DeferReason::InFlight);
            }
        }
    }

    fn attempts_on_record(&self, outcome: &Outcome) -> Option<u32> {
        let known = self.known.deliveries.get(&outcome.delivery);
        let current = self.current.get(&outcome.delivery);
        current
            .map(|current| current.attempts)
            .or(known.map(|known| known.attempts))
    }

    /// The delivery as it stands, made from the outcome when its message has not been recorded yet (rule 4).
    fn track(&mut self, outcome: &Outcome) -> Current {
        if let Some(current) = self.current.get_mut(&outcome.delivery) {
            if outcome.attempt.is_some() {
                current.attempts = current.attempts.max(outcome.attempts);
            }
            let current = *current;
            if let Some(put) = self.changes.deliveries.get_mut(&outcome.delivery) {
                put.attempts = current.attempts;
            }
            return current;
        }
        let known = self.known.deliveries.get(&outcome.delivery);
        let made = if outcome.attempt.is_some() {
            outcome.attempts
        } else {
            0
        };
        let put = DeliveryPut {
            id: outcome.delivery,
            message: outcome.message,
            endpoint: outcome.endpoint,
            app: outcome.app,
            state: known.map_or(DeliveryState::Pending, |known| known.state),
            attempts: known.map_or(made, |known| known.attempts.max(made)),
            trigger: outcome.trigger,
            cancelled: None,
            is_new: known.is_none(),
        };
        let current = Current {
            state: put.state,
            attempts: put.attempts,
            waiting: known.and_then(|known| known.waiting),
        };
        if known.is_none() {
            self.create(put, None);
        } else {
            self.current.insert(put.id, current);
            self.changes.deliveries.insert(put.id, put);
        }
        current
    }

    /// A failure that is `known`, or that came after the end of its delivery, says nothing of how its endpoint is now.
    fn add_attempt(&mut self, outcome: &Outcome, known: bool) {
        let Some(attempt) = &outcome.attempt else { return };
        self.changes.attempts.push(AttemptPut {
            attempt: attempt.clone(),
            delivery: outcome.delivery,
            message: outcome.message,
            endpoint: outcome.endpoint,
            app: outcome.app,
            trigger: outcome.trigger,
        });
        if known && attempt.class != AttemptClass::Success {
            return;
        }
        let known = self
            .known
            .endpoints
            .get(&outcome.endpoint)
            .and_then(|known| known.failing_since);
        let failing = self
            .changes
            .failing
            .entry(outcome.endpoint)
            .or_insert((outcome.app, known));
        failing.1 = match attempt.class {
            AttemptClass::Success => None,
            _ => Some(failing.1.unwrap_or(attempt.started_at.min(self.now))),
        };
    }

    fn set_state(&mut self, outcome: &Outcome, state: DeliveryState, cancelled: Option<CancelReason>) {
        let Some(current) = self.current.get_mut(&outcome.delivery) else {
            return;
        };
        let before = std::mem::replace(&mut current.state, state);
        if let Some(put) = self.changes.deliveries.get_mut(&outcome.delivery) {
            put.state = state;
            put.cancelled = cancelled;
        }
        if before != state {
            let made_at = outcome.message.created_at();
            self.changes.count(outcome.endpoint, made_at, before, -1);
            self.changes.count(outcome.endpoint, made_at, state, 1);
        }
    }

    /// Ends the delivery: its waiting row goes.
    fn end(&mut self, outcome: &Outcome, state: DeliveryState, cancelled: Option<CancelReason>) {
        self.set_state(outcome, state, cancelled);
        if let Some(current) = self.current.get_mut(&outcome.delivery) {
            current.waiting = None;
        }
        let in_store = self
            .known
            .deliveries
            .get(&outcome.delivery)
            .is_some_and(|known| known.waiting.is_some());
        if in_store {
            self.changes.waiting.insert(outcome.delivery, None);
        } else {
            self.changes.waiting.remove(&outcome.delivery);
        }
    }

    /// What an exhausted delivery does to its endpoint.
    fn punish(&mut self, outcome: &Outcome, gone: bool) {
        let Some(known) = self.known.endpoints.get(&outcome.endpoint) else {
            return;
        };
        if gone && !known.disabled {
            self.changes
                .disable
                .insert(outcome.endpoint, (outcome.app, DisableReason::Gone));
        } else if known.pause_when_exhausted {
            self.changes.pause.insert(outcome.endpoint, outcome.app);
        }
    }

    fn reschedule(
        &mut self,
        outcome: &Outcome,
        before: Option<KnownWaiting>,
        at: UnixMillis,
        delay: Duration,
        reason: DeferReason,
    ) {
        let row = KnownWaiting {
            run: outcome.run,
            due_at: due_at(at, delay, self.now, before.and_then(|row| row.leased_at)),
            leased_at: before.and_then(|row| row.leased_at),
            seq: before.map_or(0, |row| row.seq),
        };
        self.wait(outcome.delivery, outcome.app, outcome.endpoint, row, reason);
    }
}

/// Rule 5: the worker's time plus the delay, clamped to the store's clock.
fn due_at(at: UnixMillis, delay: Duration, now: UnixMillis, leased_at: Option<UnixMillis>) -> UnixMillis {
    let latest = now.plus(delay);
    let earliest = leased_at
        .map_or(now, |leased_at| leased_at.plus(delay).max(now))
        .min(latest);
    at.plus(delay).clamp(earliest, latest)
}

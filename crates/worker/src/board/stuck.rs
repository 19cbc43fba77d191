//! What has not started in time comes off the board.

use std::time::{Duration, Instant};

use postrider_model::EndpointId;

use super::turns::Blocked;
use super::{Board, WAIT_MAX};

/// How often endpoints are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// Above so many endpoints none is remembered for long.
const REMEMBERED_MAX: usize = 200_000;

/// When what comes off the board because its slots are taken may come back: one after the other, as fast as units start.
/// If all came back together, all but a few would be given back again, and the slots be idle meanwhile.
#[derive(Debug, Default)]
pub(super) struct Returns {
    /// Units that have started since `counted_at`.
    pub(super) started: u32,
    counted_at: Option<Instant>,
    /// From one start to the next, of late.
    interval: Duration,
    /// The last turn that was given, and whether it was since the last look.
    last: Option<Instant>,
    is_used: bool,
}

impl Returns {
    /// Looks at how fast units start while they wait for each other: a moving average, since attempts may end in step. When
    /// nobody has needed a turn since the last look, turns begin anew.
    fn count(&mut self, are_taken: bool, now: Instant) {
        if !std::mem::take(&mut self.is_used) {
            self.last = None;
        }
        if !are_taken {
            // How seldom something comes tells nothing of how fast it could start.
            (self.started, self.counted_at) = (0, Some(now));
            return;
        }
        let since = *self.counted_at.get_or_insert(now);
        if self.started == 0 {
            return;
        }
        let newest = now.saturating_duration_since(since) / self.started;
        self.interval = match self.interval {
            Duration::ZERO => newest,
            before => (before * 3 + newest) / 4,
        };
        (self.started, self.counted_at) = (0, Some(now));
    }

    /// The turn of one more, not before `earliest` from now.
    fn wait(&mut self, earliest: Duration, now: Instant) -> Duration {
        let next = self.last.map_or(now, |last| last + self.interval);
        let turn = next.clamp(now + earliest, now + WAIT_MAX);
        self.last = Some(turn);
        self.is_used = true;
        turn - now
    }
}

impl<U> Board<U> {
    /// Takes back units that have waited for longer than the bound: their endpoint, its host or the whole worker is
    /// busy, and what they came with keeps others in the broker.
    ///
    /// Each comes with the time after which it may be tried: longer the longer its endpoint has taken nothing, so that
    /// what waits for an endpoint that hangs does not come back each second; and its turn, when the slots are taken.
    ///
    /// Call it some times a second.
    pub(crate) fn take_stuck(&mut self, now: Instant) -> Vec<(U, Duration)> {
        let bound = self.settings.queue_max_wait;
        let is_full = self.in_flight >= self.settings.slots;
        self.returns.count(is_full || !self.held_back.is_empty(), now);
        let is_late = |at: Instant| now.saturating_duration_since(at) > bound;
        let mut stuck = Vec::new();
        while let Some((_, endpoint)) = self.arrivals.pop_front_if(|(at, _)| is_late(*at)) {
            // A host's slots are its own: who waits for them does not hold up those who wait for the worker's.
            let waits_for_host = matches!(self.blocked(endpoint), Some(Blocked::Host));
            let Some(lane) = self.lanes.get_mut(&endpoint) else {
                continue;
            };
            let wait = lane.expected_wait(0, now).clamp(bound, WAIT_MAX);
            let takes_turns = is_full || (lane.parked && !waits_for_host);
            while let Some((_, unit)) = lane.units.pop_front_if(|(at, _)| is_late(*at)) {
                let turn = if takes_turns {
                    wait.max(self.returns.wait(bound, now))
                } else {
                    wait
                };
                stuck.push((unit, turn));
                self.queued -= 1;
            }
        }
        self.forget(now);
        stuck
    }

    /// Forgets endpoints that were not tried for long. This looks at all of them, so it is done now and then.
    fn forget(&mut self, now: Instant) {
        if self
            .forgot_at
            .is_some_and(|at| now.saturating_duration_since(at) < FORGET_EVERY)
        {
            return;
        }
        self.forgot_at = Some(now);
        let slow_after = self.settings.slow_after;
        let many = self.lanes.len() > REMEMBERED_MAX;
        self.lanes.retain(|_, lane| {
            let forgotten = if many {
                lane.pace.is_stale(now)
            } else {
                lane.pace.is_forgotten(slow_after, now)
            };
            // One that is parked keeps its place in the queue.
            lane.in_flight > 0 || lane.parked || !lane.units.is_empty() || !forgotten
        });
    }

    /// How long an endpoint has taken nothing, if that is longer than its attempts may take without being slow, and twice as
    /// long as they usually take when it takes them. It is the endpoint that is stuck then, and not this worker.
    pub(crate) fn stalled(&self, endpoint: EndpointId, now: Instant) -> Option<Duration> {
        let lane = self.lanes.get(&endpoint)?;
        let stalled = lane.full_for(now)?;
        // One that is slow, but answers, is no slower than usual.
        (stalled >= self.settings.slow_after.max(lane.pace.usual() * 2)).then_some(stalled)
    }

    /// Takes back everything that has not started: the process drains.
    pub(crate) fn take_all(&mut self) -> Vec<U> {
        let lanes = self.lanes.values_mut();
        let units: Vec<U> = lanes
            .flat_map(|lane| lane.units.drain(..))
            .map(|(_, unit)| unit)
            .collect();
        self.queued -= units.len();
        units
    }
}

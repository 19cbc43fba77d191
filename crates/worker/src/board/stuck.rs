//! What has not started in time comes off the board.

use std::time::{Duration, Instant};

use postrider_model::EndpointId;

use super::{Board, WAIT_MAX};

impl<U> Board<U> {
    /// Takes back units that have waited for longer than the bound: their endpoint, its host or the whole worker is
    /// busy, and what they came with keeps others in the broker.
    ///
    /// Each comes with the time after which it may be tried, longer the longer its endpoint has taken nothing, so that
    /// what waits for an endpoint that hangs does not come back each second.
    pub(crate) fn take_stuck(&mut self, now: Instant) -> Vec<(U, Duration)> {
        let bound = self.settings.queue_max_wait;
        let mut stuck = Vec::new();
        let late: Vec<EndpointId> = self
            .lanes
            .iter()
            .filter(|(_, lane)| {
                lane.units
                    .front()
                    .is_some_and(|(at, _)| now.saturating_duration_since(*at) > bound)
            })
            .map(|(endpoint, _)| *endpoint)
            .collect();
        for endpoint in late {
            let Some(lane) = self.lanes.get_mut(&endpoint) else {
                continue;
            };
            let wait = lane.expected_wait(0, now).clamp(bound, WAIT_MAX);
            while lane
                .units
                .front()
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) > bound)
            {
                if let Some((_, unit)) = lane.units.pop_front() {
                    stuck.push((unit, wait));
                    self.queued -= 1;
                }
            }
        }
        self.lanes
            .retain(|_, lane| lane.in_flight > 0 || !lane.units.is_empty() || !lane.pace.is_stale(now));
        stuck
    }

    /// How long an endpoint has taken nothing, if that is longer than its attempts may take without being slow. It is the
    /// endpoint that is stuck then, and not this worker.
    pub(crate) fn stalled(&self, endpoint: EndpointId, now: Instant) -> Option<Duration> {
        let stalled = self.lanes.get(&endpoint)?.full_for(now)?;
        (stalled >= self.settings.slow_after).then_some(stalled)
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

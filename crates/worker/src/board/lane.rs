//! One endpoint's lane: what waits for it, and how long what comes now would wait.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use postrider_model::AppId;

use super::pace::Pace;

/// An endpoint's units.
pub(super) struct Lane<U> {
    pub(super) app: AppId,
    pub(super) host: u64,
    pub(super) units: VecDeque<(Instant, U)>,
    pub(super) in_flight: usize,
    pub(super) pace: Pace,
    pub(super) in_ring: bool,
    /// It waits for room on its host, or among the slow; no turn is taken meanwhile.
    pub(super) parked: bool,
    /// When the last attempt ended, or the first one began: an estimate of latency while none has ended.
    pub(super) progress_at: Instant,
}

impl<U> Lane<U> {
    pub(super) fn new(app: AppId, host: u64, slots: usize, now: Instant) -> Self {
        Self {
            app,
            host,
            units: VecDeque::new(),
            in_flight: 0,
            pace: Pace::new(slots),
            in_ring: false,
            parked: false,
            progress_at: now,
        }
    }

    /// How long a unit queued now would wait: what is ahead of it, `kept` places included, at the endpoint's pace.
    pub(super) fn expected_wait(&self, kept: usize, now: Instant) -> Duration {
        // What is first has waited for its turn already; what is queued now will wait no less.
        let turn = self
            .units
            .front()
            .map_or(Duration::ZERO, |(at, _)| now.saturating_duration_since(*at));
        self.wait_for_endpoint(kept, now).max(turn)
    }

    /// How long none of those in flight has ended.
    fn stalled(&self, now: Instant) -> Duration {
        if self.in_flight > 0 {
            now.saturating_duration_since(self.progress_at)
        } else {
            Duration::ZERO
        }
    }

    /// How long it has taken nothing: it has all in flight that its pace allows, and none has ended for this long.
    pub(super) fn full_for(&self, now: Instant) -> Option<Duration> {
        (self.in_flight >= self.pace.limit()).then(|| self.stalled(now))
    }

    fn wait_for_endpoint(&self, kept: usize, now: Instant) -> Duration {
        let ahead = (self.units.len() + kept + 1 + self.in_flight).saturating_sub(self.pace.limit());
        if ahead == 0 {
            return Duration::ZERO;
        }
        let latency = self.pace.latency().max(self.stalled(now));
        let rounds = ahead.div_ceil(self.pace.limit());
        latency.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX))
    }
}

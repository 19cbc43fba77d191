//! How often something may start, so that what it carries gathers.
//!
//! The first start after a quiet time is free; the next one waits for the rest of the interval. So a lonely item pays
//! nothing, and under load each start carries what came during an interval.

use std::time::Duration;

use tokio::time::Instant;

/// The time of the last start, and how long after it the next one may be.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    interval: Duration,
    last: Option<Instant>,
}

impl Pace {
    /// Starts that are at least `interval` apart. Tokio's timers tick each millisecond, so that the effective interval is
    /// up to a millisecond longer; zero is no pace.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        Self { interval, last: None }
    }

    /// When the next start may be; none when it may be now.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let at = self.last? + self.interval;
        (at > Instant::now()).then_some(at)
    }

    /// Lets the next start be at any time.
    pub fn reset(&mut self) {
        self.last = None;
    }

    /// Notes a start.
    pub fn started(&mut self) {
        self.last = Some(Instant::now());
    }
}

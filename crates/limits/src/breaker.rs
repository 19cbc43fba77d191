//! The circuit breaker of one endpoint, as a pure state machine over microseconds of some clock.
//!
//! ```text
//! closed(failures) --enough failures--> open(until) --asked after until--> half-open(probe leased)
//!    ^                                     ^                                     |        |
//!    |                                     +--- the probe failed: twice as long -+        |
//!    +------------------------------ any success ------------------------------------------+
//! ```
//!
//! Guarantees: one probe at a time while its lease runs; the time between probes doubles up to its bound; what was
//! started before the breaker opened neither lengthens nor doubles it. The Redis scripts hold the same machine.

use std::time::Duration;

use crate::gcra::micros;
use crate::{BreakerChange, BreakerSettings};

/// How long a probe may take before another is leased.
pub const PROBE_LEASE: Duration = Duration::from_secs(60);

/// How often the scheduler asks again while a probe is on its way.
pub const PROBE_POLL: Duration = Duration::from_secs(1);

/// Least time that a worker is told to wait for a breaker; the time may be up, but the probe is not a worker's.
pub const WAIT_MIN: Duration = Duration::from_millis(100);

/// How long the count of failures, or a breaker whose time is up, is remembered when nothing happens.
pub const MEMORY: Duration = Duration::from_secs(3600);

/// The state; times in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker {
    /// All pass.
    Closed {
        /// Failures in a row.
        failures: u32,
    },
    /// None pass until then; the next one after it is a probe.
    Open {
        /// When a probe may go.
        until: u64,
        /// How long it was opened for.
        interval: u64,
    },
    /// A probe is on its way.
    HalfOpen {
        /// When it is taken for lost.
        lease_until: u64,
        /// How long the breaker was open.
        interval: u64,
    },
}

/// The scheduler's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Closed.
    Pass,
    /// Release one; the lease is taken.
    Probe,
    /// Ask again after so many microseconds.
    Wait(u64),
}

impl Default for Breaker {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Breaker {
    /// For a worker: how many microseconds to wait; `None` when closed.
    pub fn wait(&self, now: u64) -> Option<u64> {
        let wait = match *self {
            Self::Closed { .. } => return None,
            Self::Open { until, .. } => until.saturating_sub(now),
            Self::HalfOpen { lease_until, .. } => lease_until.saturating_sub(now).min(micros(PROBE_POLL)),
        };
        Some(wait.max(micros(WAIT_MIN)))
    }

    /// For the scheduler: may its backlog go? Takes the probe's lease when one is due.
    pub fn ask(&mut self, now: u64) -> Ask {
        let (at, interval, longest) = match *self {
            Self::Closed { .. } => return Ask::Pass,
            Self::Open { until, interval } => (until, interval, u64::MAX),
            Self::HalfOpen {
                lease_until,
                interval,
            } => (lease_until, interval, micros(PROBE_POLL)),
        };
        if now < at {
            return Ask::Wait((at - now).min(longest));
        }
        *self = Self::HalfOpen {
            lease_until: now.saturating_add(micros(PROBE_LEASE)),
            interval,
        };
        Ask::Probe
    }

    /// The endpoint works.
    pub fn success(&mut self) -> BreakerChange {
        let was = std::mem::take(self);
        if matches!(was, Self::Closed { .. }) {
            BreakerChange::None
        } else {
            BreakerChange::Closed
        }
    }

    /// An attempt failed; `probe` tells whether it was the leased one.
    pub fn failure(&mut self, now: u64, probe: bool, settings: &BreakerSettings) -> BreakerChange {
        let interval = match *self {
            Self::Closed { failures } if failures.saturating_add(1) < settings.failures => {
                *self = Self::Closed {
                    failures: failures + 1,
                };
                return BreakerChange::None;
            }
            Self::Closed { .. } => micros(settings.open_for),
            Self::HalfOpen { interval, .. } if probe => interval.saturating_mul(2),
            Self::HalfOpen { .. } | Self::Open { .. } => return BreakerChange::None,
        };
        let interval = interval.min(micros(settings.open_for_max));
        *self = Self::Open {
            until: now.saturating_add(interval),
            interval,
        };
        BreakerChange::Opened(Duration::from_micros(interval))
    }

    /// The probe came to nothing, by no fault of the endpoint: the next one may go at once.
    pub fn give_back(&mut self, now: u64) {
        if let Self::HalfOpen { interval, .. } = *self {
            *self = Self::Open { until: now, interval };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: BreakerSettings = BreakerSettings {
        failures: 3,
        open_for: Duration::from_secs(30),
        open_for_max: Duration::from_secs(100),
    };
    const SECOND: u64 = 1_000_000;

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        assert_eq!(breaker.failure(0, false, &SETTINGS), BreakerChange::None);
        assert_eq!(breaker.failure(0, false, &SETTINGS), BreakerChange::None);
        assert_eq!(
            breaker.failure(0, false, &SETTINGS),
            BreakerChange::Opened(SETTINGS.open_for)
        );
        breaker
    }

    #[test]
    fn a_success_resets_the_count() {
        let mut breaker = Breaker::default();
        breaker.failure(0, false, &SETTINGS);
        breaker.failure(0, false, &SETTINGS);
        assert_eq!(breaker.success(), BreakerChange::None);
        assert_eq!(breaker.failure(0, false, &SETTINGS), BreakerChange::None);
        assert_eq!(breaker.wait(0), None);
    }

    #[test]
    fn each_failed_probe_doubles_the_time_up_to_its_bound() {
        let mut breaker = opened();
        let mut now = 0;
        for expected in [60, 100, 100] {
            assert!(matches!(breaker.ask(now), Ask::Wait(_)));
            now += breaker.wait(now).unwrap();
            assert_eq!(breaker.ask(now), Ask::Probe);
            let change = breaker.failure(now, true, &SETTINGS);
            assert_eq!(change, BreakerChange::Opened(Duration::from_secs(expected)));
        }
    }

    #[test]
    fn one_probe_at_a_time_until_its_lease_ends() {
        let mut breaker = opened();
        assert_eq!(breaker.ask(30 * SECOND), Ask::Probe);
        assert_eq!(breaker.ask(30 * SECOND), Ask::Wait(SECOND));
        assert_eq!(
            breaker.failure(31 * SECOND, false, &SETTINGS),
            BreakerChange::None
        );
        assert_eq!(breaker.ask(90 * SECOND - 1), Ask::Wait(1));
        assert_eq!(breaker.ask(90 * SECOND), Ask::Probe);
        breaker.give_back(91 * SECOND);
        assert_eq!(breaker.ask(91 * SECOND), Ask::Probe);
        assert_eq!(breaker.success(), BreakerChange::Closed);
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(steps in prop::collection::vec((0_u8..6, 0_u64..70 * SECOND), 1..200)) {
            let mut breaker = Breaker::default();
            let (mut now, mut leased) = (0_u64, None::<u64>);
            for (step, gap) in steps {
                now += gap;
                let before = breaker;
                match step {
                    0 => { breaker.success(); leased = None; }
                    1 | 2 => {
                        breaker.failure(now, false, &SETTINGS);
                        if !matches!(before, Breaker::Closed { .. }) {
                            prop_assert_eq!(before, breaker);
                        }
                    }
                    3 => { breaker.failure(now, true, &SETTINGS); leased = None; }
                    4 => { breaker.give_back(now); leased = None; }
                    _ => if breaker.ask(now) == Ask::Probe {
                        prop_assert!(leased.is_none_or(|until| until <= now), "two probes at once");
                        leased = Some(now + micros(PROBE_LEASE));
                    }
                }
                match breaker {
                    Breaker::Closed { failures } => prop_assert!(failures < SETTINGS.failures),
                    Breaker::Open { until, interval } => {
                        prop_assert!(interval >= micros(SETTINGS.open_for));
                        prop_assert!(interval <= micros(SETTINGS.open_for_max));
                        prop_assert!(until <= now + interval);
                    }
                    Breaker::HalfOpen { .. } => prop_assert!(breaker.wait(now).unwrap() <= micros(PROBE_POLL)),
                }
            }
        }
    }
}

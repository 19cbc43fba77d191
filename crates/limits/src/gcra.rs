//! The generic cell rate algorithm: one number a key, exact waits, no timer.
//!
//! The number is the *theoretical arrival time* (TAT) in microseconds of some clock: when all that was taken will
//! have been paid back at the agreed pace. `burst` permits may be out at once. The time of one permit is rounded up
//! to whole microseconds, so a limit is never exceeded and falls short of its rate by at most `rate / 10^6` of it.
//! The Redis scripts compute the same from [`Gcra::interval`] and [`Gcra::tolerance`].

use std::time::Duration;

use crate::Rate;

/// Whole microseconds of a duration, at most 2^52 (140 years) so that a double holds sums of them exactly.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros())
        .unwrap_or(u64::MAX)
        .min(1 << 52)
}

/// A rate made ready to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gcra {
    interval: u64,
    tolerance: u64,
}

/// What [`Gcra::take_up_to`] took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Permits taken; may be 0.
    pub count: u32,
    /// The TAT to keep.
    pub tat: u64,
    /// Microseconds until one more permit is there.
    pub next: u64,
}

impl Gcra {
    /// From a rate; zeros count as 1.
    pub fn new(rate: Rate) -> Self {
        let interval = 1_000_000_u64.div_ceil(u64::from(rate.per_second.max(1)));
        Self {
            interval,
            tolerance: interval * u64::from(rate.burst.max(1)),
        }
    }

    /// Microseconds that one permit costs.
    pub fn interval(&self) -> u64 {
        self.interval
    }

    /// Microseconds by which the TAT may run ahead of the clock: the burst's worth.
    pub fn tolerance(&self) -> u64 {
        self.tolerance
    }

    /// Takes `count` permits at `now`, all or none.
    ///
    /// More than the burst are given when nothing is owed; the debt then keeps later ones waiting.
    ///
    /// # Errors
    /// When they are not there: after how many microseconds they would be.
    pub fn take(&self, tat: u64, now: u64, count: u32) -> Result<u64, u64> {
        let cost = self.interval.saturating_mul(u64::from(count));
        let after = tat.max(now).saturating_add(cost);
        let allowed = now.saturating_add(self.tolerance.max(cost));
        if after > allowed {
            Err(after - allowed)
        } else {
            Ok(after)
        }
    }

    /// Takes as many of `wanted` permits as are there at `now`.
    pub fn take_up_to(&self, tat: u64, now: u64, wanted: u32) -> Grant {
        let base = tat.max(now);
        let free = self.tolerance.saturating_sub(base - now) / self.interval;
        let count = u32::try_from(free).unwrap_or(u32::MAX).min(wanted);
        let tat = base.saturating_add(self.interval.saturating_mul(u64::from(count)));
        let next = tat
            .saturating_add(self.interval)
            .saturating_sub(now.saturating_add(self.tolerance));
        Grant { count, tat, next }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gcra(per_second: u32, burst: u32) -> Gcra {
        Gcra::new(Rate { per_second, burst })
    }

    #[test]
    fn a_burst_passes_then_one_an_interval() {
        let gcra = gcra(10, 3);
        let mut tat = 0;
        for _ in 0..3 {
            tat = gcra.take(tat, 1_000, 1).unwrap();
        }
        assert_eq!(gcra.take(tat, 1_000, 1), Err(100_000));
        assert_eq!(gcra.take(tat, 100_999, 1), Err(1));
        assert!(gcra.take(tat, 101_000, 1).is_ok());
    }

    #[test]
    fn more_than_the_burst_is_lent_once_and_paid_back() {
        let gcra = gcra(10, 2);
        let tat = gcra.take(0, 0, 5).unwrap();
        assert_eq!(tat, 500_000);
        assert_eq!(gcra.take(tat, 0, 5), Err(500_000));
        assert_eq!(gcra.take(tat, 0, 1), Err(400_000));
    }

    #[test]
    fn up_to_gives_what_is_there_and_tells_when_the_next_comes() {
        let gcra = gcra(50, 5);
        let first = gcra.take_up_to(0, 7, 100);
        assert_eq!(
            first,
            Grant {
                count: 5,
                tat: 100_007,
                next: 20_000
            }
        );
        assert_eq!(gcra.take_up_to(first.tat, 7, 3), Grant { count: 0, ..first });
        assert_eq!(gcra.take_up_to(first.tat, 20_007, 3).count, 1);
        assert_eq!(gcra.take_up_to(0, 7, 2).next, 0);
    }

    proptest! {
        #[test]
        fn never_above_burst_and_rate_and_the_wait_is_exact(
            per_second in 1_u32..5_000,
            burst in 1_u32..100,
            steps in prop::collection::vec((0_u64..50_000, 1_u32..20, any::<bool>()), 1..200),
        ) {
            let gcra = gcra(per_second, burst);
            let (mut tat, mut now, start, mut passed) = (0, 1_000_000_u64, 1_000_000_u64, 0_u64);
            for (gap, count, all) in steps {
                now += gap;
                let count = count.min(burst);
                if all {
                    match gcra.take(tat, now, count) {
                        Ok(after) => { tat = after; passed += u64::from(count); }
                        Err(wait) => {
                            prop_assert!(wait > 0);
                            prop_assert!(gcra.take(tat, now + wait - 1, count).is_err());
                            prop_assert!(gcra.take(tat, now + wait, count).is_ok());
                        }
                    }
                } else {
                    let grant = gcra.take_up_to(tat, now, count);
                    if grant.next > 0 {
                        prop_assert_eq!(gcra.take_up_to(grant.tat, now + grant.next - 1, 1).count, 0);
                    }
                    prop_assert_eq!(gcra.take_up_to(grant.tat, now + grant.next, 1).count, 1);
                    tat = grant.tat;
                    passed += u64::from(grant.count);
                }
                let most = u64::from(burst) + (now - start) * u64::from(per_second) / 1_000_000;
                prop_assert!(passed <= most, "{passed} passed, at most {most} may");
            }
        }
    }
}

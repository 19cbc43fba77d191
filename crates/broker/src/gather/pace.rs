//! How often something may start, so that what it carries gathers.
//!
//! The first start after a quiet time is free; the next one waits for the *beat*. So a lonely item pays nothing, and under
//! load each start carries what came since the beat before. Beats are the same for everything in the process: what starts
//! together shares the broker's wake-ups and its writes to disk, which cost it more than what is written.
//!
//! A start that carried little is followed sooner ([`Pace::started_with`]): where little comes, waiting gathers little.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// The beat that others are counted from.
static FIRST_BEAT: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What a start waits for each of the calls that the one before carried. Tokio's timers tick as often.
const FOR_EACH: Duration = Duration::from_millis(1);

/// The time of the last start, and the interval between the beats at which the next ones may be.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    interval: Duration,
    /// With the interval of the beats that it waits for.
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// Starts on beats that are at most `interval` apart. Tokio's timers tick each millisecond, so use whole ones; zero is no
    /// pace.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        Self { interval, last: None }
    }

    /// When the next start may be: on the first beat after the last start. None when it may be now.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let (last, interval) = self.last?;
        let last = last.saturating_duration_since(*FIRST_BEAT).as_nanos();
        let interval = interval.as_nanos();
        let beat = (last.checked_div(interval)? + 1) * interval;
        let at = *FIRST_BEAT + Duration::from_nanos(u64::try_from(beat).ok()?);
        (at > Instant::now()).then_some(at)
    }

    /// Lets the next start be at any time.
    pub fn reset(&mut self) {
        self.last = None;
    }

    /// Notes a start.
    pub fn started(&mut self) {
        self.last = Some((Instant::now(), self.interval));
    }

    /// Notes a start that carried so many calls: the next one waits a millisecond for each, and for no longer than the
    /// interval.
    pub fn started_with(&mut self, calls: usize) {
        let calls = u32::try_from(calls).unwrap_or(u32::MAX);
        self.last = Some((Instant::now(), self.interval.min(FOR_EACH.saturating_mul(calls))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(10);

    #[tokio::test(start_paused = true)]
    async fn starts_meet_on_a_beat() {
        let [mut one, mut other] = [Pace::new(INTERVAL); 2];
        assert_eq!((one.next(), other.next()), (None, None), "nothing started yet");
        one.started();
        let beat = one.next().expect("one has started just now");
        assert!(beat - Instant::now() <= INTERVAL);
        tokio::time::advance((beat - Instant::now()) / 2).await;
        other.started();
        assert_eq!(other.next(), Some(beat), "one beat for both");
        tokio::time::advance(beat - Instant::now()).await;
        assert_eq!(one.next(), None, "it is time");
        one.started();
        assert_eq!(one.next(), Some(beat + INTERVAL));
        tokio::time::advance(INTERVAL * 3).await;
        assert_eq!(one.next(), None, "a quiet time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_carried_little_is_followed_sooner() {
        let mut pace = Pace::new(INTERVAL);
        for (calls, longest) in [(1, FOR_EACH), (3, 3 * FOR_EACH), (1_000, INTERVAL)] {
            pace.started_with(calls);
            let next = pace.next().expect("a beat");
            assert!(next - Instant::now() <= longest, "{calls}");
            tokio::time::advance(next - Instant::now()).await;
            pace.started_with(calls);
            assert_eq!(
                pace.next(),
                Some(Instant::now() + longest),
                "{calls}, from one beat to the next"
            );
            tokio::time::advance(longest).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_interval_is_no_pace() {
        let mut pace = Pace::new(Duration::ZERO);
        pace.started();
        assert_eq!(pace.next(), None);
        pace.started_with(5);
        assert_eq!(pace.next(), None);
    }
}

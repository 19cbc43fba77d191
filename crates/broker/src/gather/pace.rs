//! How often something may start, so that what it carries gathers.
//!
//! The first start after a quiet time is free; the next one waits for the *beat*. So a lonely item pays nothing, and under
//! load each start carries what came since the beat before. Beats are the same for everything in the process: what starts
//! together shares the broker's wake-ups and its writes to disk, which cost it more than what is written.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// The beat that others are counted from.
static FIRST_BEAT: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time of the last start, and the interval between the beats at which the next ones may be.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    interval: Duration,
    last: Option<Instant>,
}

impl Pace {
    /// Starts on beats that are `interval` apart. Tokio's timers tick each millisecond, so use whole ones; zero is no
    /// pace.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        Self { interval, last: None }
    }

    /// When the next start may be: on the first beat after the last start. None when it may be now.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let interval = self.interval.as_nanos();
        let last = self.last?.saturating_duration_since(*FIRST_BEAT).as_nanos();
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
        self.last = Some(Instant::now());
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
    async fn no_interval_is_no_pace() {
        let mut pace = Pace::new(Duration::ZERO);
        pace.started();
        assert_eq!(pace.next(), None);
    }
}

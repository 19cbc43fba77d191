//! The retry schedule: how long after a failed attempt the next one is due.

use std::time::Duration;

/// Delays after the first, second, … failed attempt. After the last one the delivery is exhausted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrySchedule(Vec<Duration>);

/// Why a schedule is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// More than [`RetrySchedule::MAX_RETRIES`] delays.
    #[error("a retry schedule has at most 20 delays")]
    TooLong,
    /// A delay above [`RetrySchedule::MAX_DELAY`].
    #[error("a retry delay is at most 7 days")]
    DelayTooLong,
    /// A delay of less than a second.
    #[error("a retry delay is at least 1 second")]
    DelayTooShort,
}

impl RetrySchedule {
    /// Most retries that a schedule may hold.
    pub const MAX_RETRIES: usize = 20;
    /// Longest delay.
    pub const MAX_DELAY: Duration = Duration::from_secs(7 * 24 * 3600);
    /// Share of a delay by which jitter may shorten or lengthen it, in percent.
    pub const JITTER_PERCENT: u32 = 20;

    /// A schedule of these delays; none means one attempt only.
    pub fn try_new(delays: Vec<Duration>) -> Result<Self, ScheduleError> {
        if delays.len() > Self::MAX_RETRIES {
            return Err(ScheduleError::TooLong);
        }
        if delays.iter().any(|delay| *delay > Self::MAX_DELAY) {
            return Err(ScheduleError::DelayTooLong);
        }
        if delays.iter().any(|delay| *delay < Duration::from_secs(1)) {
            return Err(ScheduleError::DelayTooShort);
        }
        Ok(Self(delays))
    }

    /// The delays.
    pub fn delays(&self) -> &[Duration] {
        &self.0
    }

    /// The delay before the next attempt once `attempts` attempts have failed; `None` when they are used up.
    /// `roll` is uniform in `0.0..1.0` and places the result within ±20 %.
    pub fn next_delay(&self, attempts: u32, roll: f64) -> Option<Duration> {
        let index = usize::try_from(attempts.checked_sub(1)?).ok()?;
        let spread = f64::from(Self::JITTER_PERCENT) / 100.0;
        self.0
            .get(index)
            .map(|delay| delay.mul_f64(1.0 - spread + 2.0 * spread * roll.clamp(0.0, 1.0)))
    }
}

impl Default for RetrySchedule {
    /// 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 10 h: eight attempts in 27 h 35 min 5 s.
    fn default() -> Self {
        Self(
            [5, 300, 1_800, 7_200, 18_000, 36_000, 36_000]
                .map(Duration::from_secs)
                .to_vec(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_schedule_makes_eight_attempts() {
        let schedule = RetrySchedule::default();
        assert_eq!(schedule.next_delay(1, 0.5), Some(Duration::from_secs(5)));
        assert_eq!(schedule.next_delay(7, 0.5), Some(Duration::from_secs(36_000)));
        assert_eq!(schedule.next_delay(8, 0.5), None);
        assert_eq!(
            schedule.delays().iter().sum::<Duration>(),
            Duration::from_secs(99_305)
        );
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        let schedule = RetrySchedule::default();
        assert_eq!(schedule.next_delay(1, 0.0), Some(Duration::from_secs(4)));
        assert_eq!(schedule.next_delay(1, 1.0), Some(Duration::from_secs(6)));
    }

    #[test]
    fn absurd_schedules_are_refused() {
        assert_eq!(
            RetrySchedule::try_new(vec![Duration::from_secs(1); 21]),
            Err(ScheduleError::TooLong)
        );
        assert_eq!(
            RetrySchedule::try_new(vec![Duration::from_millis(999)]),
            Err(ScheduleError::DelayTooShort)
        );
        assert_eq!(
            RetrySchedule::try_new(vec![Duration::from_secs(700_000)]),
            Err(ScheduleError::DelayTooLong)
        );
    }
}

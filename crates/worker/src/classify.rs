//! What a response or a failure means: pure, in one place.

use std::time::Duration;

use postrider_limits::Signal;
use postrider_model::{AttemptClass, DeferReason, Next, RetrySchedule};

use crate::board::Verdict;

/// Shortest and longest push-back that a receiver may ask for with Retry-After (RFC 9110, section 10.2.3).
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);
/// How long a delivery waits whose lease was over when its turn came. Not at once: should the clock be wrong, that would
/// go round and round.
pub(crate) const LEASE_OVER_DELAY: Duration = Duration::from_secs(1);
/// How long a delivery waits after a failure of ours.
pub(crate) const OURS_DELAY: Duration = Duration::from_secs(5);

/// What an attempt met, without its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// A response with this status and, for 429 and 503, the time that Retry-After asks for.
    Status(u16, Option<Duration>),
    /// A failure of theirs, by class.
    Failure(AttemptClass),
    /// A failure of ours: no attempt.
    Ours,
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Consequence {
    /// `None` when no attempt is to be recorded.
    pub(crate) class: Option<AttemptClass>,
    pub(crate) next: Next,
    pub(crate) signal: Signal,
    pub(crate) verdict: Verdict,
}

/// `attempts` counts this attempt; `roll` in `0.0..1.0` places the jitter.
pub(crate) fn consequence(met: Met, attempts: u32, schedule: &RetrySchedule, roll: f64) -> Consequence {
    let retry = |at_least: Duration| match schedule.next_delay(attempts, roll) {
        Some(delay) => Next::Retry {
            delay: delay.max(at_least),
        },
        None => Next::Exhausted { gone: false },
    };
    match met {
        Met::Status(200..=299, _) => Consequence {
            class: Some(AttemptClass::Success),
            next: Next::Delivered,
            signal: Signal::Success,
            verdict: Verdict::Fine,
        },
        Met::Status(410, _) => Consequence {
            class: Some(AttemptClass::Status),
            next: Next::Exhausted { gone: true },
            signal: Signal::Failure,
            verdict: Verdict::Neutral,
        },
        Met::Status(status @ (429 | 503), asked) => {
            let asked = asked.map(|asked| asked.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX));
            Consequence {
                class: Some(AttemptClass::Status),
                next: retry(asked.unwrap_or_default()),
                signal: match (status, asked) {
                    (429, Some(asked)) => Signal::PushBack(asked),
                    (429, None) => Signal::Neutral,
                    (_, Some(asked)) => Signal::FailureWithPushBack(asked),
                    (_, None) => Signal::Failure,
                },
                verdict: Verdict::Overload,
            }
        }
        Met::Status(..) => Consequence {
            class: Some(AttemptClass::Status),
            next: retry(Duration::ZERO),
            signal: Signal::Failure,
            verdict: Verdict::Neutral,
        },
        Met::Failure(class) => Consequence {
            class: Some(class),
            next: retry(Duration::ZERO),
            signal: Signal::Failure,
            verdict: if class == AttemptClass::Timeout {
                Verdict::Overload
            } else {
                Verdict::Neutral
            },
        },
        Met::Ours => Consequence {
            class: None,
            next: Next::Deferred {
                reason: DeferReason::Ours,
                delay: OURS_DELAY,
            },
            signal: Signal::Neutral,
            verdict: Verdict::Untried,
        },
    }
}

/// What an attempt that was a breaker's probe says: whatever is no success keeps the breaker open, 429 too, which of any other
/// delivery is no failure. Otherwise an endpoint that answers 429 would be probed without a rest.
pub(crate) fn of_probe(signal: Signal) -> Signal {
    match signal {
        Signal::Neutral => Signal::Failure,
        Signal::PushBack(pause) => Signal::FailureWithPushBack(pause),
        other => other,
    }
}

/// The delay that a Retry-After header asks for: seconds, or an HTTP date (RFC 9110, sections 5.6.7 and 10.2.3).
pub(crate) fn retry_after(value: &str, now: std::time::SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(value.trim())
        .ok()
        .map(|date| date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn of(met: Met, attempts: u32) -> Consequence {
        consequence(met, attempts, &RetrySchedule::default(), 0.5)
    }

    #[test]
    fn every_status_has_its_consequence() {
        let retry = Next::Retry {
            delay: Duration::from_secs(5),
        };
        let table = [
            (
                Met::Status(200, None),
                Next::Delivered,
                Signal::Success,
                Verdict::Fine,
            ),
            (
                Met::Status(299, None),
                Next::Delivered,
                Signal::Success,
                Verdict::Fine,
            ),
            (Met::Status(302, None), retry, Signal::Failure, Verdict::Neutral),
            (Met::Status(404, None), retry, Signal::Failure, Verdict::Neutral),
            (
                Met::Status(410, None),
                Next::Exhausted { gone: true },
                Signal::Failure,
                Verdict::Neutral,
            ),
            (Met::Status(429, None), retry, Signal::Neutral, Verdict::Overload),
            (Met::Status(500, None), retry, Signal::Failure, Verdict::Neutral),
            (Met::Status(503, None), retry, Signal::Failure, Verdict::Overload),
            (
                Met::Failure(AttemptClass::Timeout),
                retry,
                Signal::Failure,
                Verdict::Overload,
            ),
            (
                Met::Failure(AttemptClass::Blocked),
                retry,
                Signal::Failure,
                Verdict::Neutral,
            ),
        ];
        for (met, next, signal, verdict) in table {
            let got = of(met, 1);
            assert_eq!(
                (got.next, got.signal, got.verdict),
                (next, signal, verdict),
                "{met:?}"
            );
        }
    }

    #[test]
    fn a_failure_of_ours_is_no_attempt() {
        let got = of(Met::Ours, 1);
        assert_eq!(
            (got.class, got.signal, got.verdict),
            (None, Signal::Neutral, Verdict::Untried)
        );
        assert!(matches!(
            got.next,
            Next::Deferred {
                reason: DeferReason::Ours,
                ..
            }
        ));
    }

    #[test]
    fn retry_after_pushes_back_within_bounds() {
        let day = Duration::from_secs(86_400);
        let got = of(Met::Status(429, Some(day)), 1);
        assert_eq!(got.signal, Signal::PushBack(RETRY_AFTER_MAX));
        assert_eq!(
            got.next,
            Next::Retry {
                delay: RETRY_AFTER_MAX
            }
        );
        let got = of(Met::Status(503, Some(Duration::ZERO)), 2);
        assert_eq!(got.signal, Signal::FailureWithPushBack(RETRY_AFTER_MIN));
        assert_eq!(
            got.next,
            Next::Retry {
                delay: Duration::from_secs(300)
            }
        );
    }

    #[test]
    fn a_probe_that_is_no_success_is_a_failure() {
        let pause = Duration::from_secs(7);
        let met = |status, asked| of_probe(of(Met::Status(status, asked), 1).signal);
        assert_eq!(met(429, None), Signal::Failure);
        assert_eq!(met(429, Some(pause)), Signal::FailureWithPushBack(pause));
        assert_eq!(met(500, None), Signal::Failure);
        assert_eq!(met(204, None), Signal::Success);
    }

    #[test]
    fn the_last_failure_exhausts() {
        assert_eq!(
            of(Met::Status(500, None), 8).next,
            Next::Exhausted { gone: false }
        );
    }

    #[test]
    fn retry_after_reads_seconds_and_dates_and_nothing_else() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now),
            Some(Duration::from_secs(7))
        );
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now),
            Some(Duration::ZERO)
        );
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-5", now), None);
    }
}

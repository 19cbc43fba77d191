//! How many attempts an endpoint takes at once: additive increase, multiplicative decrease.
//!
//! An endpoint starts at [`START`] and, until its first sign of overload, gains one for every success; afterwards one
//! for every window of successes. A timeout, a 429 or a 503 halves it, at most once a window, down to one.

use std::time::{Duration, Instant};

const START: f64 = 4.0;
/// A pace that has learnt nothing for so long begins again: what an endpoint took then it need not take now.
const STALE_AFTER: Duration = Duration::from_secs(60);
/// For how long it is remembered that an endpoint answers fast. Most endpoints are tried now and then, and what nothing
/// is known of shares a half of the slots.
const FAST_FOR: Duration = Duration::from_secs(15 * 60);
/// Weight of the newest latency in the moving average.
const NEWEST: f64 = 0.2;

/// What an attempt says about its endpoint's pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was taken.
    Fine,
    /// Too much: a timeout, a 429 or a 503.
    Overload,
    /// That it answers or fails so fast, and nothing of how much it takes: other failures.
    Neutral,
    /// Nothing at all: it was not tried, or failed through our own fault.
    Untried,
}

/// What is known of how long an endpoint's attempts take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speed {
    /// None has ended or run for long yet.
    Unknown,
    Fast,
    Slow,
}

#[derive(Debug)]
pub(super) struct Pace {
    limit: f64,
    max: f64,
    starting: bool,
    /// How long attempts take: a moving average, and no less than those that have run for long.
    latency: Option<Duration>,
    /// The same of those that were taken.
    usual: Option<Duration>,
    halved_at: Option<Instant>,
    learnt_at: Option<Instant>,
}

impl Pace {
    pub(super) fn new(max: usize) -> Self {
        let max = f64::from(u32::try_from(max).unwrap_or(u32::MAX)).max(1.0);
        Self {
            limit: START.min(max),
            max,
            starting: true,
            latency: None,
            usual: None,
            halved_at: None,
            learnt_at: None,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "1 <= limit <= max, which is a u32"
    )]
    pub(super) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// The moving average; zero until an attempt ended.
    pub(super) fn latency(&self) -> Duration {
        self.latency.unwrap_or_default()
    }

    /// How long an attempt that is taken usually takes. What times out tells nothing of that.
    pub(super) fn usual(&self) -> Duration {
        self.usual.unwrap_or_default()
    }

    /// Slow means that attempts take at least `bound`.
    pub(super) fn speed(&self, bound: Duration) -> Speed {
        match self.latency {
            None => Speed::Unknown,
            Some(latency) if latency >= bound => Speed::Slow,
            Some(_) => Speed::Fast,
        }
    }

    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.learnt_nothing_for(STALE_AFTER, now)
    }

    /// Whether it is as good as new; what is slower than `bound` is given another chance earlier.
    pub(super) fn is_forgotten(&self, bound: Duration, now: Instant) -> bool {
        let remembered = match self.speed(bound) {
            Speed::Fast => FAST_FOR,
            Speed::Slow | Speed::Unknown => STALE_AFTER,
        };
        self.learnt_nothing_for(remembered, now)
    }

    fn learnt_nothing_for(&self, time: Duration, now: Instant) -> bool {
        self.learnt_at
            .is_none_or(|at| now.saturating_duration_since(at) > time)
    }

    /// Forgets what it may not go by any more: how many attempts it took at once, and how long they took.
    pub(super) fn begin_again(&mut self, bound: Duration, now: Instant) {
        if self.is_forgotten(bound, now) {
            (self.latency, self.usual) = (None, None);
        }
        if self.is_stale(now) {
            self.limit = START.min(self.max);
            self.starting = true;
            self.halved_at = None;
        }
    }

    /// An attempt has run for at least `bound` and goes on.
    pub(super) fn saw_slow(&mut self, bound: Duration) {
        self.latency = Some(self.latency().max(bound));
        self.usual = Some(self.usual().max(bound));
    }

    pub(super) fn learn(&mut self, verdict: Verdict, took: Duration, now: Instant) {
        if verdict == Verdict::Untried {
            return;
        }
        self.learnt_at = Some(now);
        self.latency = Some(average(self.latency, took));
        match verdict {
            Verdict::Fine => {
                self.usual = Some(average(self.usual, took));
                let step = if self.starting { 1.0 } else { 1.0 / self.limit };
                self.limit = (self.limit + step).min(self.max);
            }
            Verdict::Overload => {
                self.starting = false;
                let settled = self
                    .halved_at
                    .is_none_or(|at| now.saturating_duration_since(at) > self.latency());
                if settled {
                    self.limit = (self.limit / 2.0).max(1.0);
                    self.halved_at = Some(now);
                }
            }
            Verdict::Neutral | Verdict::Untried => {}
        }
    }
}

fn average(before: Option<Duration>, newest: Duration) -> Duration {
    before.map_or(newest, |before| {
        before.mul_f64(1.0 - NEWEST) + newest.mul_f64(NEWEST)
    })
}

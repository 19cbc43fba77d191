//! Names that fail while others do not. One lookup that fails says nothing about whose fault it is, so it counts as
//! ours; but when a name's own servers are dead, that would be so for ever, and what goes there would never end.
//!
//! The rule: lookups of the name have failed for [`Rule::span`], at least [`Rule::count`] times and never further apart
//! than [`Rule::gap`], none of them was answered, and shortly before each of them ([`Rule::fresh`]) another name's was.
//! Then, and until it is answered, the name's failures are its owner's. When nothing is answered, all is ours: nothing
//! is counted, and the gap makes the count start again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Names that fail; of more than these the failures stay ours.
const NAMES_MAX: usize = 10_000;

/// When a name fails alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// From the first failure to the one that is theirs.
    pub(crate) span: Duration,
    /// Failures, at least.
    pub(crate) count: u32,
    /// Longest time between two of them.
    pub(crate) gap: Duration,
    /// How long another name's answer speaks for our resolver.
    pub(crate) fresh: Duration,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            span: Duration::from_secs(600),
            count: 8,
            gap: Duration::from_secs(300),
            fresh: Duration::from_secs(60),
        }
    }
}

/// What came of lookups lately.
#[derive(Debug, Default)]
pub(crate) struct Names {
    rule: Rule,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When a name server last answered, whatever it said.
    answered_at: Option<Instant>,
    failing: HashMap<String, Failing>,
}

#[derive(Debug, Clone, Copy)]
struct Failing {
    since: Instant,
    last: Instant,
    count: u32,
}

impl Names {
    #[cfg(test)]
    pub(crate) fn with_rule(rule: Rule) -> Self {
        Self {
            rule,
            state: Mutex::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn answered_at(&self) -> Option<Instant> {
        self.state.lock().answered_at
    }

    /// Whether failures of this name are its owner's.
    pub(crate) fn fails_alone(&self, name: &str, now: Instant) -> bool {
        let state = self.state.lock();
        let failing = state.failing.get(name);
        failing.is_some_and(|failing| self.rule.is_alone(failing, now))
    }

    /// The name was answered for, by a name server and just now.
    pub(crate) fn answered(&self, name: &str, now: Instant) {
        let mut state = self.state.lock();
        state.answered_at = Some(now);
        state.failing.remove(name);
    }

    /// The name was not answered for. True when that is its owner's fault.
    pub(crate) fn failed(&self, name: &str, now: Instant) -> bool {
        let rule = self.rule;
        let mut state = self.state.lock();
        let ours_works = state
            .answered_at
            .is_some_and(|at| now.saturating_duration_since(at) <= rule.fresh);
        if !ours_works {
            return false;
        }
        if state.failing.len() >= NAMES_MAX && !state.failing.contains_key(name) {
            state.failing.retain(|_, failing| !rule.is_over(failing, now));
            if state.failing.len() >= NAMES_MAX {
                return false;
            }
        }
        let first = Failing {
            since: now,
            last: now,
            count: 0,
        };
        let failing = state.failing.entry(name.to_owned()).or_insert(first);
        if rule.is_over(failing, now) {
            *failing = first;
        }
        failing.last = now;
        failing.count += 1;
        rule.is_alone(failing, now)
    }
}

impl Rule {
    fn is_over(&self, failing: &Failing, now: Instant) -> bool {
        now.saturating_duration_since(failing.last) > self.gap
    }

    fn is_alone(&self, failing: &Failing, now: Instant) -> bool {
        !self.is_over(failing, now)
            && failing.count >= self.count
            && now.saturating_duration_since(failing.since) >= self.span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(30);

    /// Looks both names up every 30 s for so many times; what the last failure of the bad one counted as.
    fn look(names: &Names, now: &mut Instant, times: u32, other_answers: bool) -> bool {
        let mut theirs = false;
        for _ in 0..times {
            *now += STEP;
            if other_answers {
                names.answered("good.example", *now);
            }
            theirs = names.failed("bad.example", *now);
        }
        theirs
    }

    #[test]
    fn a_name_that_fails_alone_for_ten_minutes_is_its_owners() {
        let (names, mut now) = (Names::default(), Instant::now());
        assert!(!look(&names, &mut now, 20, true), "nine minutes and a half");
        assert!(look(&names, &mut now, 1, true));
        assert!(names.fails_alone("bad.example", now));
        assert!(!names.fails_alone("good.example", now));
        names.answered("bad.example", now);
        assert!(
            !look(&names, &mut now, 1, true),
            "one answer, and it starts again"
        );
    }

    #[test]
    fn while_nothing_is_answered_all_is_ours() {
        let (names, mut now) = (Names::default(), Instant::now());
        assert!(!look(&names, &mut now, 100, false));
        assert!(!look(&names, &mut now, 15, true));
        assert!(!look(&names, &mut now, 100, false), "an outage of ours");
        assert!(!look(&names, &mut now, 20, true), "it does not count as time");
        assert!(look(&names, &mut now, 1, true));
    }

    #[test]
    fn few_failures_or_rare_ones_are_ours() {
        let (names, mut now) = (Names::default(), Instant::now());
        for _ in 0..50 {
            now += Duration::from_secs(301);
            names.answered("good.example", now);
            assert!(!names.failed("bad.example", now));
        }
        let names = Names::default();
        for _ in 0..7 {
            now += Duration::from_secs(250);
            names.answered("good.example", now);
            assert!(!names.failed("bad.example", now));
        }
    }

    #[test]
    fn names_are_bounded() {
        let (names, mut now) = (Names::default(), Instant::now());
        names.answered("good.example", now);
        for name in 0..NAMES_MAX + 10 {
            names.failed(&name.to_string(), now);
        }
        assert_eq!(names.state.lock().failing.len(), NAMES_MAX);
        now += Duration::from_secs(301);
        names.answered("good.example", now);
        names.failed("late.example", now);
        assert_eq!(
            names.state.lock().failing.len(),
            1,
            "those that are over make room"
        );
    }
}

//! Follows the changes of configuration, so that who caches it knows that it is current without asking for each
//! application.
//!
//! Twice a second the store is asked once for all that changed. Guarantees: [`Follower::age`] of what was read at some
//! time is the time since it was last known to be current, or to have been reported; each change is reported within
//! [`EVERY`] of its commit while the store answers, whatever became of the announcement that its author made, and
//! again for [`REPEAT`], so that a report that met a read under way finds its result.
//!
//! After an interruption reports begin anew, and what was read before ages: the store may have failed over to a state
//! from before the last changes. For the same reason [`Follower::is_due`] has everything read again now and then.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use postrider_model::AppId;
use tokio::time::Instant;

use crate::{ChangedApps, SharedStore, Since};

/// How often the store is asked.
const EVERY: Duration = Duration::from_millis(500);
/// For how long a change is reported: longer than a read takes.
const REPEAT: Duration = Duration::from_secs(20);
/// Longest time between two answers that belong together.
const GAP_MAX: Duration = Duration::from_secs(5);
/// After this time, and up to as much again, what is used is read again all the same.
const RENEW_AFTER: Duration = Duration::from_secs(300);
/// Applications that one answer takes. When more changed, ages count from the reads, as without a follower.
const CHANGED_MAX: u32 = 20_000;

/// Knows until when every change was reported. One for each cache.
#[derive(Debug, Default)]
pub struct Follower(Mutex<Option<Span>>);

/// Every change that was committed between these was reported.
#[derive(Clone, Copy, Debug)]
struct Span {
    since: Instant,
    until: Instant,
}

impl Follower {
    /// How long ago what was read at `read_at` was last known to be current, or to have been reported.
    pub fn age(&self, read_at: Instant) -> Duration {
        let current_at = match *self.0.lock() {
            Some(span) if read_at >= span.since => read_at.max(span.until),
            _ => read_at,
        };
        current_at.elapsed()
    }

    /// Whether what was read at `read_at` should be read again beside the traffic, current or not. Applications take turns.
    pub fn is_due(app: AppId, read_at: Instant) -> bool {
        let part = f64::from(app.as_bytes()[15]) / 256.0;
        read_at.elapsed() > RENEW_AFTER + RENEW_AFTER.mul_f64(part)
    }

    /// Asks the store until it is dropped, and gives `changed` each application that changed with its version: again and
    /// again for [`REPEAT`], deleted ones too.
    pub async fn run(&self, store: &SharedStore, changed: impl Fn(AppId, u64)) {
        let mut answers = Answers::default();
        let mut is_away = false;
        loop {
            let asked_at = Instant::now();
            if answers.are_interrupted(asked_at) {
                answers = Answers::default();
            }
            let since = answers.since(asked_at);
            match store.changed_apps(since, CHANGED_MAX).await {
                Ok(answer) => {
                    for (app, version) in &answer.apps {
                        changed(*app, *version);
                    }
                    self.answered(asked_at, tells_all(&answer, since));
                    answers.keep(asked_at, &answer, since);
                    is_away = false;
                }
                Err(error) => {
                    answers = Answers::default();
                    if !is_away {
                        tracing::warn!(%error, "the store does not tell what changed; configuration is read again by its age");
                    }
                    is_away = true;
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// An answer came: when it tells all changes since an earlier one, those until `asked_at` were reported; otherwise
    /// reports begin with it.
    fn answered(&self, asked_at: Instant, tells_all: bool) {
        let mut span = self.0.lock();
        *span = Some(match *span {
            Some(before) if tells_all => Span {
                until: asked_at,
                ..before
            },
            _ => {
                let now = Instant::now();
                Span {
                    since: now,
                    until: now,
                }
            }
        });
    }
}

/// Whether an answer to `since` leaves nothing out.
fn tells_all(answer: &ChangedApps, since: Option<Since>) -> bool {
    let is_whole = answer.apps.len() < CHANGED_MAX as usize;
    is_whole && since.is_some_and(|since| answer.next >= since)
}

/// Where the last answers ended.
#[derive(Debug, Default)]
struct Answers(VecDeque<(Instant, Since)>);

impl Answers {
    /// Where the last one ended that is as old as a report repeats itself, or else the first one.
    fn since(&mut self, now: Instant) -> Option<Since> {
        while let Some((at, _)) = self.0.get(1)
            && now.saturating_duration_since(*at) >= REPEAT
        {
            self.0.pop_front();
        }
        self.0.front().map(|(_, since)| *since)
    }

    /// Whether too much time has passed since the last one.
    fn are_interrupted(&self, now: Instant) -> bool {
        let last = self.0.back();
        last.is_some_and(|(at, _)| now.saturating_duration_since(*at) > GAP_MAX)
    }

    fn keep(&mut self, asked_at: Instant, answer: &ChangedApps, since: Option<Since>) {
        if !tells_all(answer, since) {
            self.0.clear();
        }
        self.0.push_back((asked_at, answer.next));
    }
}

#[cfg(test)]
mod tests {
    use postrider_model::UnixMillis;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn answer(changed: u32, next: i64) -> ChangedApps {
        let app = AppId::generate(UnixMillis(1), &mut rand::rng());
        ChangedApps {
            apps: vec![(app, 1); changed as usize],
            next: Since(next),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_before_the_first_answer_ages() {
        let (follower, read_at) = (Follower::default(), Instant::now());
        tokio::time::advance(SECOND).await;
        follower.answered(Instant::now(), false);
        assert_eq!(follower.age(read_at), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_keep_young_what_was_read_since_the_first() {
        let follower = Follower::default();
        follower.answered(Instant::now(), false);
        let read_at = Instant::now();
        for _ in 0..100 {
            tokio::time::advance(SECOND).await;
            follower.answered(Instant::now(), true);
        }
        assert_eq!(follower.age(read_at), Duration::ZERO);
        tokio::time::advance(SECOND).await;
        assert_eq!(follower.age(read_at), SECOND);
        assert_eq!(follower.age(Instant::now()), Duration::ZERO);
        follower.answered(Instant::now(), false);
        assert_eq!(follower.age(read_at), 101 * SECOND, "something was left out");
    }

    #[tokio::test(start_paused = true)]
    async fn all_is_read_again_in_time_and_not_at_one_time() {
        let read_at = Instant::now();
        let apps: Vec<AppId> = (0..100)
            .map(|_| AppId::generate(UnixMillis(1), &mut rand::rng()))
            .collect();
        let due = || apps.iter().filter(|app| Follower::is_due(**app, read_at)).count();
        tokio::time::advance(RENEW_AFTER).await;
        assert_eq!(due(), 0);
        tokio::time::advance(RENEW_AFTER / 2).await;
        assert!((20..80).contains(&due()), "{}", due());
        tokio::time::advance(RENEW_AFTER / 2).await;
        assert_eq!(due(), 100);
    }

    #[test]
    fn an_answer_tells_all_unless_it_is_the_first_too_long_or_of_an_earlier_state() {
        assert!(tells_all(&answer(0, 5), Some(Since(5))));
        assert!(tells_all(&answer(CHANGED_MAX - 1, 6), Some(Since(5))));
        assert!(!tells_all(&answer(0, 5), None));
        assert!(!tells_all(&answer(CHANGED_MAX, 6), Some(Since(5))));
        assert!(!tells_all(&answer(0, 4), Some(Since(5))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_asked_for_again_for_a_time() {
        let mut answers = Answers::default();
        for second in 0..60 {
            let now = Instant::now();
            let since = answers.since(now);
            assert_eq!(since, (second > 0).then(|| Since((second - 20).max(0))));
            answers.keep(now, &answer(0, second), since);
            tokio::time::advance(SECOND).await;
        }
        assert!(!answers.are_interrupted(Instant::now()));
        assert!(answers.are_interrupted(Instant::now() + GAP_MAX));
        let since = answers.since(Instant::now());
        answers.keep(Instant::now(), &answer(0, 7), since);
        assert_eq!(
            answers.since(Instant::now()),
            Some(Since(7)),
            "the store was put back"
        );
    }
}

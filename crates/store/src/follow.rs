//! Follows the changes of configuration, so that who caches it knows that it is current without asking for each
//! application.
//!
//! Twice a second the store is asked once for all applications that changed of late. Guarantees: of what was read at some
//! time, [`Follower::age`] is the time since the store was last known to have nothing newer, or for which no report came;
//! each change is reported within [`EVERY`] of its commit while the store answers, whatever became of the announcement
//! that its author made. A report repeats itself for [`WINDOW`], so one that met a read under way finds its result, too.
//!
//! Leans on `changed_at`, which the store's clock sets while a change is being made, and on its commit within
//! [`CHANGE_MAX`].

use std::time::Duration;

use parking_lot::Mutex;
use postrider_model::AppId;
use tokio::time::Instant;

use crate::SharedStore;

/// How often the store is asked.
const EVERY: Duration = Duration::from_millis(500);
/// How far back each question reaches.
const WINDOW: Duration = Duration::from_secs(120);
/// Longest from a change's time to its commit: above every time limit of a write.
const CHANGE_MAX: Duration = Duration::from_secs(60);
/// Applications that one answer takes; when more changed, ages count from the reads, as without a follower.
const CHANGED_MAX: u32 = 10_000;

/// Knows until when every change was reported. One for each cache.
#[derive(Debug, Default)]
pub struct Follower(Mutex<Option<Span>>);

/// Every change between these was reported.
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

    /// Asks the store until it is dropped, and gives `changed` each application that changed with its version: again and
    /// again for [`WINDOW`], deleted ones too.
    pub async fn run(&self, store: &SharedStore, changed: impl Fn(AppId, u64)) {
        let mut answers = true;
        loop {
            let asked_at = Instant::now();
            match store.changed_apps(WINDOW, CHANGED_MAX).await {
                Ok(apps) => {
                    let all = apps.len() < CHANGED_MAX as usize;
                    apps.into_iter().for_each(|(app, version)| changed(app, version));
                    self.reported(asked_at, all);
                    answers = true;
                }
                Err(error) if answers => {
                    tracing::warn!(%error, "the store does not tell what changed; configuration is read again by its age");
                    answers = false;
                }
                Err(_) => {}
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// All changes up to `asked_at` were reported, unless there were more than one answer takes.
    fn reported(&self, asked_at: Instant, all: bool) {
        let mut span = self.0.lock();
        let since = span
            .filter(|span| asked_at - span.until < WINDOW - CHANGE_MAX)
            .map_or(asked_at, |span| span.since);
        *span = all.then_some(Span {
            since,
            until: asked_at,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn what_was_read_before_the_first_report_ages() {
        let (follower, read_at) = (Follower::default(), Instant::now());
        tokio::time::advance(SECOND).await;
        follower.reported(Instant::now(), true);
        assert_eq!(follower.age(read_at), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn reports_keep_young_what_was_read_since_the_first() {
        let follower = Follower::default();
        follower.reported(Instant::now(), true);
        let read_at = Instant::now();
        for _ in 0..100 {
            tokio::time::advance(SECOND).await;
            follower.reported(Instant::now(), true);
        }
        assert_eq!(follower.age(read_at), Duration::ZERO);
        tokio::time::advance(SECOND).await;
        assert_eq!(follower.age(read_at), SECOND);
        assert_eq!(follower.age(Instant::now()), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_that_a_report_does_not_cover_begins_anew() {
        for (gap, covered) in [(59 * SECOND, true), (60 * SECOND, false)] {
            let follower = Follower::default();
            follower.reported(Instant::now(), true);
            let read_at = Instant::now();
            tokio::time::advance(gap).await;
            follower.reported(Instant::now(), true);
            let age = if covered { Duration::ZERO } else { gap };
            assert_eq!(follower.age(read_at), age);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn more_changes_than_one_answer_takes_are_no_report() {
        let follower = Follower::default();
        follower.reported(Instant::now(), true);
        let read_at = Instant::now();
        tokio::time::advance(SECOND).await;
        follower.reported(Instant::now(), false);
        assert_eq!(follower.age(read_at), SECOND);
    }
}

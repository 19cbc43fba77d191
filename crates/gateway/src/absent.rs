//! Applications that were asked for and are not there: the store is asked for each of them once a second, not for each
//! request. A producer whose application was deleted may go on for long.
//!
//! Guarantees: an application that this process names is found from then on, one that another names after [`KEPT`].
//! Memory is bounded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use postrider_store::AppRef;
use tokio::time::Instant;

/// How long an absence counts, from the time at which it was read.
const KEPT: Duration = Duration::from_secs(1);
const KEPT_MAX: u64 = 10_000;

/// What is absent, and when that was read.
pub(crate) struct Absent {
    read_at: Cache<AppRef, Instant>,
    /// How many names were given. A read that began before one of them may not have seen it.
    names: AtomicU64,
}

/// A read that has begun.
#[derive(Clone, Copy)]
pub(crate) struct Read {
    pub(crate) at: Instant,
    names: u64,
}

impl Absent {
    pub(crate) fn new() -> Self {
        let read_at = Cache::builder().max_capacity(KEPT_MAX).time_to_live(KEPT);
        Self {
            read_at: read_at.build(),
            names: AtomicU64::new(0),
        }
    }

    /// Whether it was not there just now.
    pub(crate) fn has(&self, app: &AppRef) -> bool {
        let read_at = self.read_at.get(app);
        read_at.is_some_and(|read_at| read_at.elapsed() < KEPT)
    }

    /// Whether it was not there at this time or later.
    pub(crate) fn has_since(&self, app: &AppRef, asked_at: Instant) -> bool {
        self.read_at.get(app).is_some_and(|read_at| read_at >= asked_at)
    }

    /// To be called before the store is asked.
    pub(crate) fn begin(&self) -> Read {
        Read {
            names: self.names.load(Ordering::SeqCst),
            at: Instant::now(),
        }
    }

    /// It was not there.
    pub(crate) fn add(&self, app: &AppRef, read: Read) {
        self.read_at.insert(app.clone(), read.at);
        // Looked at last: a name that is given now removes what was added.
        if self.names.load(Ordering::SeqCst) != read.names {
            self.read_at.invalidate(app);
        }
    }

    /// There is one of this name now.
    pub(crate) fn remove(&self, uid: &str) {
        self.names.fetch_add(1, Ordering::SeqCst);
        self.read_at.invalidate(&AppRef::Uid(uid.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acme() -> AppRef {
        AppRef::Uid("acme".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn an_absence_counts_for_a_second() {
        let absent = Absent::new();
        assert!(!absent.has(&acme()));
        absent.add(&acme(), absent.begin());
        assert!(absent.has(&acme()) && absent.has_since(&acme(), Instant::now()));
        tokio::time::advance(Duration::from_millis(999)).await;
        assert!(absent.has(&acme()) && !absent.has_since(&acme(), Instant::now()));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!absent.has(&acme()));
    }

    #[test]
    fn what_gets_its_name_is_not_absent_not_even_for_a_read_under_way() {
        let absent = Absent::new();
        absent.add(&acme(), absent.begin());
        let read = absent.begin();
        absent.remove("acme");
        assert!(!absent.has(&acme()));
        absent.add(&acme(), read);
        assert!(!absent.has(&acme()));
        absent.add(&acme(), absent.begin());
        assert!(absent.has(&acme()));
    }
}

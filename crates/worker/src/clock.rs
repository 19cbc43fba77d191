//! The store's clock, without asking for it each time.
//!
//! Leases end by the store's clock, and a worker's own may be minutes off. About once a minute the store is asked; in
//! between its time goes on with this machine's monotonic clock, so a step of the wall clock changes nothing. While
//! the store is away the last answer goes on; before the first one there is nothing better than the wall clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postrider_model::UnixMillis;
use postrider_telemetry::error_chain;
use tokio::sync::Notify;

use crate::run::Context;

/// Between two questions.
const EVERY: Duration = Duration::from_secs(60);
/// Between two questions while the store does not answer, or its last answer is doubted.
const AGAIN: Duration = Duration::from_secs(5);
/// Longest question: a slower answer says too little.
const ASK_MAX: Duration = Duration::from_secs(2);
/// A wall clock that is further off is told about.
const OFF: Duration = Duration::from_secs(10);

/// What the store's clock showed, and when that was.
#[derive(Debug, Default)]
pub(crate) struct StoreClock {
    last: Mutex<Option<(UnixMillis, Instant)>>,
    doubted: Notify,
}

impl StoreClock {
    /// The store's time now; half a question's time off at most, and what two clocks drift apart in a minute.
    pub(crate) fn now(&self) -> UnixMillis {
        match *self.last.lock() {
            Some((shown, at)) => shown.plus(at.elapsed()),
            None => UnixMillis::now(),
        }
    }

    /// The store was asked and showed this; what it took to answer is halved.
    pub(crate) fn learn(&self, shown: UnixMillis, asked: Instant, answered: Instant) {
        let way_back = answered.saturating_duration_since(asked) / 2;
        *self.last.lock() = Some((shown.plus(way_back), answered));
    }

    /// A lease that was just given is over by this clock: it is asked about soon. Another server may be the store now.
    pub(crate) fn doubt(&self) {
        self.doubted.notify_one();
    }
}

/// Asks the store once; false when it did not answer in time.
pub(crate) async fn ask(context: &Context) -> bool {
    let asked = Instant::now();
    match tokio::time::timeout(ASK_MAX, context.deps.store.now()).await {
        Ok(Ok(shown)) => {
            context.clock.learn(shown, asked, Instant::now());
            true
        }
        Ok(Err(error)) => {
            tracing::debug!(error = %error_chain(&error), "the store's clock is out of reach");
            false
        }
        Err(_) => false,
    }
}

/// Keeps the clock right.
pub(crate) async fn keep(context: Arc<Context>) {
    loop {
        let known = ask(&context).await;
        if known {
            let (here, there) = (UnixMillis::now(), context.clock.now());
            let off = here.since(there).max(there.since(here));
            if off > OFF {
                tracing::warn!(
                    clock.offset_seconds = off.as_secs(),
                    "this machine's clock and the store's are apart"
                );
            }
        }
        tokio::time::sleep(AGAIN).await;
        if known {
            // Whether it was doubted or the time is over is the same.
            let _ = tokio::time::timeout(EVERY - AGAIN, context.clock.doubted.notified()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stores_time_goes_on_and_not_the_wall_clocks() {
        let clock = StoreClock::default();
        let wall = UnixMillis::now();
        assert!(clock.now() >= wall, "nothing better is known");
        let answered = Instant::now();
        let asked = answered
            .checked_sub(Duration::from_secs(2))
            .expect("a young clock");
        clock.learn(UnixMillis(1_000_000), asked, answered);
        let now = clock.now();
        assert!(
            now >= UnixMillis(1_001_000),
            "half the question's time has passed: {now:?}"
        );
        assert!(now < UnixMillis(1_060_000), "{now:?}");
    }
}

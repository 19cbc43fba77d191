//! The ledger: it writes down what happened and hands out what waits.
//!
//! Cast:
//! - [`recorder`]: consumes the journal, records facts in batches, acknowledges after the commit. One is active at a
//!   time (the journal's single active consumer); others stand by.
//! - [`scheduler`]: claims endpoints whose deliveries are due, asks the limits how much each may get, leases rows and
//!   publishes them to the `retry` queues. Any number may run.
//! - [`strays`]: takes back what the broker could not place.
//! - [`upkeep`]: sweeps, retention, counts for the operator.
//! - [`lag`]: how far the journal is behind.
//!
//! The ledger never stands between a message and its first attempt (`ordered`, paused and backlogged endpoints
//! excepted). It holds nothing that is not in the broker or in the store: it may die at any point.

mod ended;
mod fill;
mod lag;
mod pace;
mod poison;
mod recorder;
mod retreat;
mod scheduler;
mod strays;
mod upkeep;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use postrider_broker::{Broker, JobPublisher, JournalPublisher};
use postrider_limits::SharedLimits;
use postrider_store::SharedStore;
use postrider_telemetry::{Metrics, error_chain};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Rest before a task that panicked starts again.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// Longest time between two looks at a store that does not answer.
const STORE_LOOK_MAX: Duration = Duration::from_secs(2);

/// Settings of the ledger.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Records in a batch, at most.
    pub batch_max_records: usize,
    /// Bytes of frames in a batch, at most.
    pub batch_max_bytes: usize,
    /// Unacknowledged journal frames, at most.
    pub journal_prefetch: u16,
    /// After so long what can be neither recorded nor parked is tried again.
    pub held_retry: Duration,
    /// Shortest time between two looks at an endpoint that has more due than it got.
    pub tick: Duration,
    /// Longest sleep of an idle scheduler.
    pub idle: Duration,
    /// Endpoints claimed at once.
    pub claim_max: u32,
    /// Leases out at once for one endpoint.
    pub out_per_endpoint: u32,
    /// How long a lease holds: a worker's queue, an attempt's deadline, and a margin.
    pub lease: Duration,
    /// Time between sweeps when there is nothing to sweep.
    pub sweep_every: Duration,
    /// Rows of a sweep.
    pub sweep_max: u32,
    /// Time between looks at retention.
    pub retain_every: Duration,
    /// How long payloads are kept.
    pub payload_retention: Duration,
    /// How long records are kept.
    pub log_retention: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch_max_records: 2_000,
            batch_max_bytes: 8 * 1024 * 1024,
            journal_prefetch: 256,
            held_retry: Duration::from_secs(60),
            tick: Duration::from_millis(20),
            idle: Duration::from_millis(200),
            claim_max: 256,
            out_per_endpoint: 100,
            lease: Duration::from_secs(90),
            sweep_every: Duration::from_secs(1),
            sweep_max: 1_000,
            retain_every: Duration::from_secs(300),
            payload_retention: Duration::from_secs(30 * 24 * 3600),
            log_retention: Duration::from_secs(90 * 24 * 3600),
        }
    }
}

/// What the ledger leans on.
#[derive(Clone)]
pub struct Deps {
    /// Queues.
    pub broker: Arc<dyn Broker>,
    /// To the `retry` queues.
    pub jobs: JobPublisher,
    /// To the journal.
    pub journal: JournalPublisher,
    /// Rows.
    pub store: SharedStore,
    /// Rates, breakers, versions.
    pub limits: SharedLimits,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deps")
    }
}

/// Starts one of the ledger's tasks.
type Start = fn(Arc<Context>) -> BoxFuture<'static, ()>;

/// Shared by the ledger's tasks.
struct Context {
    settings: Settings,
    deps: Deps,
    /// Wakes this process's scheduler when the recorder wrote something that may be due.
    wake: tokio::sync::Notify,
    ended: ended::Ended,
    lag: lag::Lag,
    stop: CancellationToken,
}

/// Runs the ledger until `stop`; what is under way is finished or left to a successor.
pub async fn run(settings: Settings, deps: Deps, stop: CancellationToken) {
    let context = Arc::new(Context {
        settings,
        deps,
        wake: tokio::sync::Notify::new(),
        ended: ended::Ended::default(),
        lag: lag::Lag::default(),
        stop,
    });
    let tasks = TaskTracker::new();
    let each: [(&str, Start); 5] = [
        ("recorder", |context| recorder::run(context).boxed()),
        ("scheduler", |context| scheduler::run(context).boxed()),
        ("strays", |context| strays::run(context).boxed()),
        ("upkeep", |context| upkeep::run(context).boxed()),
        ("lag", |context| lag::run(context).boxed()),
    ];
    for (name, run) in each {
        let (context, stop) = (context.clone(), context.stop.clone());
        tasks.spawn(kept_up(name, stop, move || run(context.clone())));
    }
    tasks.close();
    tasks.wait().await;
}

/// Runs a task, and again after a panic: a ledger that looks alive but records nothing would be worse than a dead one.
/// What the task held is given back by the broker, or due again in the store.
async fn kept_up<F>(name: &'static str, stop: CancellationToken, run: impl Fn() -> F)
where
    F: Future<Output = ()>,
{
    while AssertUnwindSafe(run()).catch_unwind().await.is_err() {
        tracing::error!(task = name, "a task of the ledger panicked; it starts again");
        let rest = tokio::time::sleep(RESTART_AFTER);
        if stop.run_until_cancelled(rest).await.is_none() {
            return;
        }
    }
}

impl Context {
    /// Sleeps, or returns true when the ledger stops.
    async fn stopped_within(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.stop.cancelled()).await.is_ok()
    }

    /// Rests, and waits until the store answers; false when the ledger stops first.
    async fn store_is_back(&self, rest: Duration) -> bool {
        let mut delay = rest;
        loop {
            if self.stopped_within(delay).await {
                return false;
            }
            match self.deps.store.ping().await {
                Ok(()) => return true,
                Err(error) => tracing::warn!(error = %error_chain(&error), "the store is still away"),
            }
            delay = (delay * 2).min(STORE_LOOK_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_starts_again() {
        let starts = AtomicU32::new(0);
        kept_up("test", CancellationToken::new(), || async {
            assert!(starts.fetch_add(1, Ordering::Relaxed) >= 2, "not yet");
        })
        .await;
        assert_eq!(starts.load(Ordering::Relaxed), 3);
    }
}

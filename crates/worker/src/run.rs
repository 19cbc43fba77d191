//! The worker's life: it consumes until told to stop, then drains.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use postrider_broker::{Health, Queue};
use postrider_limits::EVERY_APP;
use postrider_model::DeferReason;
use postrider_store::{AppRef, SharedStore};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::board::{Board, BoardSettings};
use crate::clock::{self, StoreClock};
use crate::config::{self, ConfigCache};
use crate::envelope::Active;
use crate::finish::{self, Ended};
use crate::room::Room;
use crate::unit::{self, Unit};
use crate::{Deps, Settings, intake};

/// How often what is stuck on the board is looked for.
const SWEEP_EVERY: Duration = Duration::from_millis(200);
/// Rest before a helper that panicked starts again.
const HELPER_AGAIN: Duration = Duration::from_secs(1);
/// Helpers end at once when told to; what hangs all the same does not hold up the process.
const HELPERS_END_WITHIN: Duration = Duration::from_secs(1);

/// Shared by the worker's tasks.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) deps: Deps,
    pub(crate) config: Arc<ConfigCache>,
    pub(crate) board: Mutex<Board<Unit>>,
    pub(crate) active: Active,
    pub(crate) clock: StoreClock,
    /// To the finisher; bounded by what may be held.
    pub(crate) ended: mpsc::Sender<Ended>,
    /// What the drain waits for: attempts and dispatches under way, and outcomes that were handed over.
    pub(crate) tasks: TaskTracker,
    pub(crate) room: Room,
    /// Held by the one delivery that is on trial (see [`crate::suspect`]).
    pub(crate) trial: Arc<Semaphore>,
    stopping: AtomicBool,
    broker_up: AtomicBool,
}

/// Runs the worker until `stop`, then drains within the drain timeout: nothing new is taken, what has not started is
/// deferred, what is in flight is finished. What is still out after that comes back from the broker or the store.
pub async fn run(settings: Settings, deps: Deps, stop: CancellationToken) {
    let (context, queue) = Context::new(settings, deps);
    // Leases are judged from the first delivery on, unless the store is away.
    clock::ask(&context).await;
    let ended = CancellationToken::new();
    let helpers = start_helpers(&context, queue, &ended);

    let intakes = TaskTracker::new();
    let released = CancellationToken::new();
    for shard in 0..context.settings.shards {
        for queue in [Queue::Deliver(shard), Queue::Retry(shard)] {
            intakes.spawn(intake::run(
                context.clone(),
                queue,
                stop.clone(),
                released.clone(),
            ));
        }
    }
    stop.cancelled().await;
    drain(&context).await;
    released.cancel();
    ended.cancel();
    intakes.close();
    intakes.wait().await;
    if tokio::time::timeout(HELPERS_END_WITHIN, helpers.wait())
        .await
        .is_err()
    {
        tracing::warn!("a task of the worker did not end in time");
    }
}

/// What goes on beside the deliveries, until `ended`.
fn start_helpers(
    context: &Arc<Context>,
    queue: mpsc::Receiver<Ended>,
    ended: &CancellationToken,
) -> TaskTracker {
    let helpers = TaskTracker::new();
    helpers.spawn(finish::batch::run(context.clone(), queue, ended.clone()));
    let each: [(&str, Start); 5] = [
        ("clock", |context| clock::keep(context).boxed()),
        ("broker", |context| watch_broker(context).boxed()),
        ("invalidations", |context| watch_invalidations(context).boxed()),
        ("configuration", |context| follow_configuration(context).boxed()),
        ("sweep", |context| sweep(context).boxed()),
    ];
    for (name, start) in each {
        let context = context.clone();
        let kept_up = kept_up(name, move || start(context.clone()));
        helpers.spawn(ended.clone().run_until_cancelled_owned(kept_up));
    }
    helpers.close();
    helpers
}

/// Starts one of the helpers.
type Start = fn(Arc<Context>) -> BoxFuture<'static, ()>;

/// Runs a helper, and again after a panic: without it the worker would look alive and be none.
async fn kept_up<F: Future<Output = ()>>(name: &'static str, run: impl Fn() -> F) {
    while AssertUnwindSafe(run()).catch_unwind().await.is_err() {
        tracing::error!(task = name, "a task of the worker panicked; it starts again");
        tokio::time::sleep(HELPER_AGAIN).await;
    }
}

async fn drain(context: &Arc<Context>) {
    context.stopping.store(true, Ordering::Release);
    context.defer_all_waiting();
    context.tasks.close();
    let drained = tokio::time::timeout(context.settings.drain_timeout, context.tasks.wait()).await;
    if drained.is_err() {
        tracing::warn!(
            deliveries = context.active.len(),
            "the drain timeout passed; what is out comes back later"
        );
    }
}

async fn watch_broker(context: Arc<Context>) {
    let mut health = context.deps.broker.health();
    loop {
        let up = *health.borrow_and_update() == Health::Up;
        context.broker_up.store(up, Ordering::Release);
        if up {
            context.pump();
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}

async fn watch_invalidations(context: Arc<Context>) {
    let mut changes = context.deps.limits.invalidations();
    loop {
        match changes.recv().await {
            Ok(EVERY_APP) => context.config.invalidate_all(),
            Ok(app) => context.config.invalidate(app),
            Err(broadcast::error::RecvError::Lagged(_)) => context.config.invalidate_all(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// For the changes that nobody announced.
async fn follow_configuration(context: Arc<Context>) {
    context.config.follow(&context.deps.store).await;
}

async fn sweep(context: Arc<Context>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        if context.is_stopping() {
            context.defer_all_waiting();
        }
        let stuck = context.board.lock().take_stuck(Instant::now());
        for (unit, wait) in stuck {
            context.defer_unit(unit, DeferReason::Queue, wait);
        }
        let (in_flight, queued) = {
            let board = context.board.lock();
            (board.in_flight(), board.queued())
        };
        context
            .deps
            .metrics
            .worker_load(in_flight, queued, context.room.jobs());
        context.pump();
    }
}

impl Context {
    /// A worker that has nothing yet, and the deliveries that are going to end in it.
    pub(crate) fn new(settings: Settings, deps: Deps) -> (Arc<Self>, mpsc::Receiver<Ended>) {
        let (ended, queue) = mpsc::channel(settings.held_jobs_max);
        let context = Arc::new(Self {
            config: Arc::new(ConfigCache::new(
                read_from(deps.store.clone()),
                deps.limits.clone(),
                deps.policy.clone(),
                deps.metrics.clone(),
            )),
            board: Mutex::new(Board::new(BoardSettings {
                slots: settings.slots,
                host_slots: settings.host_slots,
                endpoint_slots: settings.endpoint_slots,
                slow_after: settings.slow_after,
                queue_max_wait: settings.queue_max_wait,
                queued_max: settings.held_jobs_max,
            })),
            active: Active::default(),
            clock: StoreClock::default(),
            ended,
            tasks: TaskTracker::new(),
            room: Room::new(settings.held_jobs_max, settings.held_bytes_max),
            trial: Arc::new(Semaphore::new(1)),
            stopping: AtomicBool::new(false),
            broker_up: AtomicBool::new(*deps.broker.health().borrow() == Health::Up),
            settings,
            deps,
        });
        (context, queue)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Starts every unit whose turn it is.
    pub(crate) fn pump(self: &Arc<Self>) {
        loop {
            if !self.broker_up.load(Ordering::Acquire) {
                return;
            }
            let Some(started) = self.board.lock().start(Instant::now()) else {
                return;
            };
            self.tasks.spawn(unit::run(self.clone(), started));
        }
    }

    /// Defers a unit that will not be tried here, in a task of its own; gives up one that comes back anyway, since it would
    /// then be both in the store and with whoever gets it.
    pub(crate) fn defer_unit(self: &Arc<Self>, unit: Unit, reason: DeferReason, delay: Duration) {
        let is_void = unit.is_void(self);
        let steps = unit.taken_on(self);
        if is_void {
            return;
        }
        let context = self.clone();
        self.tasks.spawn(async move {
            finish::defer_all(&context, steps, reason, delay).await;
        });
    }

    fn defer_all_waiting(self: &Arc<Self>) {
        let waiting = self.board.lock().take_all();
        for unit in waiting {
            self.defer_unit(unit, DeferReason::Drain, Duration::ZERO);
        }
    }
}

fn read_from(store: SharedStore) -> config::Read {
    Box::new(move |app| {
        let store = store.clone();
        async move { store.snapshot(&AppRef::Id(app)).await }.boxed()
    })
}

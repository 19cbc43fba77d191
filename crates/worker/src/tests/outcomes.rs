//! Outcomes end in batches: acknowledged once they are on record, and not before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_broker::{Acknowledge, Incoming, Receipt};
use postrider_limits::{Limits as _, Release, ReleaseRequest};
use postrider_model::{CancelReason, EndpointId, Job, Next, UnixMillis};
use postrider_testkit::receiver::{Reply, Script};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, World, until};
use crate::duty::{Duty, key};
use crate::intake::TRIAL_AT;
use crate::run::Context;
use crate::{Settings, envelope, finish, intake};

/// A subscription of frames of one delivery each, that counts what is acknowledged.
#[derive(Debug, Default)]
struct Frames {
    acknowledged: AtomicUsize,
    /// Acknowledgements that panic from now on.
    that_panic: AtomicUsize,
    /// Their connection is gone.
    are_void: AtomicBool,
    give_back: Arc<Notify>,
}

#[derive(Debug)]
struct Ack(Arc<Frames>);

#[async_trait]
impl Acknowledge for Ack {
    async fn acknowledge(self: Box<Self>, _more: bool) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        let panics = self
            .0
            .that_panic
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        assert!(panics.is_err(), "an acknowledgement panics, as told");
        self.0.acknowledged.fetch_add(1, Ordering::SeqCst);
        true
    }

    async fn give_back(self: Box<Self>) {}

    fn is_void(&self) -> bool {
        self.0.are_void.load(Ordering::SeqCst)
    }
}

/// Takes a delivery on that came as a frame of its own.
fn begin(context: &Arc<Context>, frames: &Arc<Frames>, job: &Job) -> Vec<Duty> {
    let receipt = Receipt::new(Box::new(Ack(frames.clone())));
    for share in envelope::shares(receipt, 1, Vec::new(), frames.give_back.clone()) {
        assert!(context.active.begin(key(job), share), "it is new");
    }
    vec![Duty::new(context, job)]
}

/// Hands over the outcomes of so many deliveries.
async fn hand_over(world: &World, context: &Arc<Context>, frames: &Arc<Frames>, count: usize) {
    let endpoint = EndpointId::generate(UnixMillis::now(), &mut rand::rng());
    for _ in 0..count {
        let job = world.job(endpoint);
        let next = Next::Cancelled(CancelReason::Parked);
        for duty in begin(context, frames, &job) {
            finish::untried(context, &job, next, duty).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_batch_is_published_again_in_one_frame_and_settled_once() {
    let world = World::new().await;
    let (context, queue) = Context::new(World::settings(), world.deps());
    let frames = Arc::new(Frames::default());
    hand_over(&world, &context, &frames, 60).await;
    world.broker.refusals.store(2, Ordering::SeqCst);
    let ended = CancellationToken::new();
    let finisher = tokio::spawn(finish::batch::run(context.clone(), queue, ended.clone()));
    world.all_settled(&context).await;
    let mut outcomes = world.outcomes(60).await;
    outcomes.sort_unstable_by_key(|outcome| outcome.delivery);
    outcomes.dedup_by_key(|outcome| outcome.delivery);
    assert_eq!(outcomes.len(), 60);
    let tries = world.broker.tries.load(Ordering::SeqCst);
    assert_eq!(tries, 3, "two that were refused, and one frame with all of them");
    assert_eq!(frames.acknowledged.load(Ordering::SeqCst), 60, "each once");
    ended.cancel();
    finisher.await.expect("it ends in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_panics_gives_its_frames_back_and_the_next_one_goes() {
    let world = World::new().await;
    let (context, queue) = Context::new(World::settings(), world.deps());
    let frames = Arc::new(Frames::default());
    frames.that_panic.store(1, Ordering::SeqCst);
    hand_over(&world, &context, &frames, 2).await;
    tokio::spawn(finish::batch::run(
        context.clone(),
        queue,
        CancellationToken::new(),
    ));
    let given_back = tokio::time::timeout(PATIENCE, frames.give_back.notified());
    given_back.await.expect("the frames come back");
    world.all_settled(&context).await;
    assert_eq!(frames.acknowledged.load(Ordering::SeqCst), 0);

    let next = Arc::new(Frames::default());
    hand_over(&world, &context, &next, 3).await;
    world.all_settled(&context).await;
    assert_eq!(next.acknowledged.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_anyway_is_neither_tried_nor_deferred() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hook", |_| {}).await;
    let context = world.context(World::settings());
    let frames = Arc::new(Frames::default());
    let job = world.job(endpoint);
    let duties = begin(&context, &frames, &job);
    frames.are_void.store(true, Ordering::SeqCst);
    crate::dispatch::dispatch(&context, vec![job], duties).await;
    until("it is given up", || context.active.len() == 0).await;
    let given_back = tokio::time::timeout(Duration::from_millis(50), frames.give_back.notified());
    assert!(given_back.await.is_err(), "the next connection keeps its frames");

    frames.are_void.store(false, Ordering::SeqCst);
    let job = world.job(endpoint);
    let (delivery, duties) = (job.delivery, begin(&context, &frames, &job));
    crate::dispatch::dispatch(&context, vec![job], duties).await;
    world.all_settled(&context).await;
    let outcomes = world.outcomes(1).await;
    assert_eq!((outcomes.len(), outcomes[0].delivery), (1, delivery));
    assert_eq!(world.receiver.total(), 1);
}

/// Whoever gets it next would take the mark for a worker's death, and park what nobody tried.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_that_comes_back_anyway_is_not_marked() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hook", |_| {}).await;
    let context = world.context(World::settings());
    let frames = Arc::new(Frames::default());
    frames.are_void.store(true, Ordering::SeqCst);
    let job = world.job(endpoint);
    let incoming = Incoming {
        frame: Bytes::new(),
        delivery_count: TRIAL_AT,
        receipt: Receipt::new(Box::new(Ack(frames.clone()))),
    };
    intake::begin(
        &context,
        incoming,
        vec![job.clone()],
        Vec::new(),
        frames.give_back.clone(),
    )
    .await;
    until("it is given up", || context.active.len() == 0).await;
    let was_on_trial = world.store.begin_trial(job.delivery, job.run).await;
    assert!(!was_on_trial.expect("a mark"), "nobody tried it");
    assert_eq!(world.receiver.total(), 0);
}

/// It would keep the room of its whole frame for as long as the endpoint hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_attempt_leaves_its_frame_as_soon_as_the_journal_takes_it() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hang", |_| {}).await;
    world.receiver.on("/hang", Script::always(Reply::Hang));
    let context = world.context(Settings {
        slow_after: Duration::from_millis(10),
        timeout: PATIENCE,
        ..World::settings()
    });
    let frames = Arc::new(Frames::default());
    let job = world.job(endpoint);
    world.broker.refusals.store(1, Ordering::SeqCst);
    crate::dispatch::dispatch(&context, vec![job.clone()], begin(&context, &frames, &job)).await;
    let acknowledged = || frames.acknowledged.load(Ordering::SeqCst) == 1;
    until("its frame is acknowledged", acknowledged).await;
    assert_eq!(context.active.len(), 1, "it is still under way");
    let outcomes = world.outcomes(1).await;
    assert!(matches!(outcomes[0].next, Next::InFlight { .. }), "{outcomes:?}");
    assert_eq!(world.broker.tries.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn done_marks_do_not_wait_for_a_journal_that_is_away() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hook", |_| {}).await;
    let context = world.context(World::settings());
    world.broker.refusals.store(usize::MAX, Ordering::SeqCst);
    for sent in 1..=10 {
        world.dispatch(&context, vec![world.job(endpoint)]).await;
        let reported = || world.limits.signals.lock().len();
        until("what has arrived is marked", || reported() == sent).await;
    }
    world.broker.refusals.store(0, Ordering::SeqCst);
    world.all_settled(&context).await;
    world.outcomes(10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_that_a_failed_probe_keeps_open_is_counted_once() {
    let world = World::new().await;
    let endpoint = world.endpoint("/down", |_| {}).await;
    world.receiver.on("/down", Script::always(Reply::Status(500)));
    let context = world.context(World::settings());
    let jobs = (0..10).map(|_| world.job(endpoint)).collect();
    world.dispatch(&context, jobs).await;
    let has_opened = |times: u32| {
        let line = format!("\npostrider_breaker_opened_total {times}\n");
        world.metrics.render().contains(&line)
    };
    until("it opens", || has_opened(1)).await;
    let request = ReleaseRequest {
        app: world.app,
        endpoint,
        rate: None,
        wanted: 1,
        more: false,
    };
    let release = async || world.limits.release(&[request]).await.expect("they answer")[0];
    let half_open = tokio::time::timeout(PATIENCE, async {
        while release().await != Release::Probe {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    half_open.await.expect("a probe may go");
    // Of another delivery this would be no failure.
    world.receiver.on("/down", Script::always(Reply::Status(429)));
    let probe = Job {
        run: 1,
        attempts: 1,
        probe: true,
        ..world.job(endpoint)
    };
    world.dispatch(&context, vec![probe]).await;
    let reported = || world.limits.signals.lock().len();
    until("the probe fails", || reported() == 11).await;
    assert!(matches!(release().await, Release::Wait(_)), "it is open again");
    world.all_settled(&context).await;
    assert!(has_opened(1), "{}", world.metrics.render());
}

//! A worker that is told to stop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postrider_broker::{Broker as _, Queue};
use postrider_model::Next;
use postrider_testkit::receiver::{Reply, Script};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, World, ended, until};
use crate::Settings;

const QUEUE: Queue = Queue::Deliver(0);

/// A worker that is told to stop while the journal refuses the outcome of its only delivery.
async fn stopped(settings: Settings) -> (World, JoinHandle<()>) {
    let world = World::new().await;
    let endpoint = world.endpoint("/hook", |_| {}).await;
    world.broker.refusals.store(usize::MAX, Ordering::SeqCst);
    let stop = CancellationToken::new();
    let worker = tokio::spawn(crate::run(settings, world.deps(), stop.clone()));
    world.publish(QUEUE, endpoint).await;
    let tries = || world.broker.tries.load(Ordering::SeqCst);
    until("the outcome is handed over", || tries() > 0).await;
    stop.cancel();
    (world, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drain_waits_until_the_journal_takes_the_outcome() {
    let (world, worker) = stopped(World::settings()).await;
    let tries = || world.broker.tries.load(Ordering::SeqCst);
    let before = tries();
    until("it is tried on", || tries() > before + 1).await;
    assert!(!worker.is_finished(), "the drain waits for it");
    world.broker.refusals.store(0, Ordering::SeqCst);
    ended(worker).await;
    assert_eq!(world.outcomes(1).await[0].next, Next::Delivered);
    assert_eq!(
        world.broker.depth(QUEUE).await.expect("a look"),
        0,
        "acknowledged"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_is_not_taken_by_the_end_comes_back_as_a_frame() {
    let settings = Settings {
        drain_timeout: Duration::from_millis(50),
        ..World::settings()
    };
    let (world, worker) = stopped(settings).await;
    ended(worker).await;
    assert_eq!(Arc::strong_count(&world.limits), 1, "nothing of it goes on");
    let mut subscription = world.broker.subscribe(QUEUE, 1).await.expect("a queue");
    let again = tokio::time::timeout(PATIENCE, subscription.next()).await;
    let again = again.expect("it is there").expect("a frame");
    assert_eq!(again.delivery_count, 1);
}

/// Others deliver it while an attempt holds up this one's drain.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_draining_worker_had_no_room_for_goes_to_others_at_once() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hang", |_| {}).await;
    world.receiver.on("/hang", Script::always(Reply::Hang));
    let settings = Settings {
        held_jobs_max: 1,
        timeout: PATIENCE,
        slow_after: PATIENCE,
        ..World::settings()
    };
    let stop = CancellationToken::new();
    let worker = tokio::spawn(crate::run(settings, world.deps(), stop.clone()));
    // One waits for room, and the others behind it.
    for _ in 0..4 {
        world.publish(QUEUE, endpoint).await;
    }
    until("one is tried", || world.receiver.total() == 1).await;
    stop.cancel();
    let mut other = world.broker.subscribe(QUEUE, 10).await.expect("a queue");
    for _ in 1..4 {
        let frame = tokio::time::timeout(PATIENCE / 2, other.next()).await;
        frame.expect("before the attempt ends").expect("a frame");
    }
    assert!(!worker.is_finished(), "it drains");
}

//! A panic costs an attempt at most.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use postrider_broker::{Broker as _, Queue};
use postrider_model::Next;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, World, ended};
use crate::board::Verdict;
use crate::duty::Seat;
use crate::unit::Unit;

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_whose_dispatch_panics_comes_back_and_is_delivered() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hook", |_| {}).await;
    let stop = CancellationToken::new();
    world.limits.gates_that_panic.store(2, Ordering::SeqCst);
    let worker = tokio::spawn(crate::run(World::settings(), world.deps(), stop.clone()));
    let jobs = [world.job(endpoint), world.job(endpoint)];
    let frame = postrider_wire::encode_jobs(&jobs);
    world
        .broker
        .publish(Queue::Deliver(0), frame)
        .await
        .expect("room");
    let outcomes = world.outcomes(2).await;
    assert!(
        outcomes.iter().all(|outcome| outcome.next == Next::Delivered),
        "{outcomes:?}"
    );
    assert_eq!(world.receiver.count("/hook"), 2, "each once");
    let page = world.metrics.render();
    let counted = page
        .lines()
        .find(|line| line.starts_with("postrider_our_failures_total") && line.contains("\"panic\""));
    assert!(counted.is_some_and(|line| line.ends_with(" 4")), "{counted:?}");
    let emptied = tokio::time::timeout(PATIENCE, async {
        while world.broker.depth(Queue::Deliver(0)).await.expect("a look") > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    emptied.await.expect("the frame is acknowledged");
    stop.cancel();
    worker.await.expect("it ends in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_that_panic_hold_nobody_up_and_end_with_the_worker() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hook", |_| {}).await;
    let stop = CancellationToken::new();
    world.limits.finishes_that_panic.store(1, Ordering::SeqCst);
    let worker = tokio::spawn(crate::run(World::settings(), world.deps(), stop.clone()));
    for delivered in 1..=2 {
        world.publish(Queue::Deliver(0), endpoint).await;
        let outcomes = world.outcomes(delivered).await;
        assert_eq!(outcomes[delivered - 1].next, Next::Delivered);
    }
    stop.cancel();
    ended(worker).await;
    assert_eq!(Arc::strong_count(&world.limits), 1, "nothing of it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_goes_back_however_its_holder_ends() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hook", |_| {}).await;
    let context = world.context(World::settings());
    let (first, second) = {
        let mut board = context.board.lock();
        for _ in 0..2 {
            let unit = Unit::Run(Vec::new());
            board
                .push(world.app, endpoint, 1, unit, Instant::now())
                .expect("room");
        }
        let mut started = std::iter::from_fn(|| board.start(Instant::now()));
        (started.next().expect("one"), started.next().expect("two"))
    };
    let seat = Seat::new(&context, first.slot);
    let holder = tokio::spawn(async move {
        let _seat = seat;
        panic!("as told");
    });
    assert!(holder.await.is_err());
    assert_eq!(context.board.lock().in_flight(), 1);
    Seat::new(&context, second.slot).done(Verdict::Fine);
    assert_eq!(context.board.lock().in_flight(), 0);
}

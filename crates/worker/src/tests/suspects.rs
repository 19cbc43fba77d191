//! A delivery that came back too often waits for its trial, and its copies with it.

use postrider_broker::{Broker as _, Queue};
use postrider_model::Next;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, World};
use crate::intake::TRIAL_AT;

const QUEUE: Queue = Queue::Deliver(0);

/// A worker that died while it split a frame left a copy of what it had published already.
#[tokio::test]
async fn a_copy_of_a_suspect_is_not_tried_before_it() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hook", |_| {}).await;
    let frame = postrider_wire::encode_jobs(&[world.job(endpoint)]);
    world.broker.publish(QUEUE, frame.clone()).await.expect("room");
    for _ in 0..TRIAL_AT {
        let mut subscription = world.broker.subscribe(QUEUE, 1).await.expect("a queue");
        subscription.next().await.expect("the frame, which comes back");
    }
    world.broker.publish(QUEUE, frame).await.expect("room");

    let stop = CancellationToken::new();
    let worker = tokio::spawn(crate::run(World::settings(), world.deps(), stop.clone()));
    let outcomes = world.outcomes(1).await;
    assert_eq!(outcomes[0].next, Next::Delivered);
    stop.cancel();
    let ended = tokio::time::timeout(PATIENCE, worker).await.expect("in time");
    ended.expect("in order");

    assert_eq!(world.receiver.count("/hook"), 1);
    assert_eq!(world.outcomes.lock().len(), 1, "one outcome for both");
    let page = world.metrics.render();
    let joined = page
        .lines()
        .find(|line| line.starts_with("postrider_duplicates_suppressed_total") && line.contains("in_flight"));
    assert!(joined.is_some_and(|line| line.ends_with(" 1")), "{joined:?}");
    assert_eq!(
        world.broker.depth(QUEUE).await.expect("a look"),
        0,
        "both are settled"
    );
}

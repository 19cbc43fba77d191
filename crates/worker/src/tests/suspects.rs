//! A delivery that came back too often waits for its trial, and its copies with it.

use std::time::Duration;

use bytes::Bytes;
use postrider_broker::{Broker as _, Queue};
use postrider_model::{AttemptClass, Next};
use postrider_testkit::receiver::{Reply, Script};
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, World};
use crate::Settings;
use crate::intake::TRIAL_AT;

const QUEUE: Queue = Queue::Deliver(0);

/// Publishes frames and takes them off the queue, unacknowledged, until each is a suspect's.
async fn publish_suspects(world: &World, frames: &[Bytes]) {
    for frame in frames {
        world.broker.publish(QUEUE, frame.clone()).await.expect("room");
    }
    for _ in 0..TRIAL_AT {
        let mut subscription = world.broker.subscribe(QUEUE, 2).await.expect("a queue");
        for _ in frames {
            subscription.next().await.expect("a frame, which comes back");
        }
    }
}

/// A worker that died while it split a frame left a copy of what it had published already.
#[tokio::test]
async fn a_copy_of_a_suspect_is_not_tried_before_it() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hook", |_| {}).await;
    let frame = postrider_wire::encode_jobs(&[world.job(endpoint)]);
    publish_suspects(&world, std::slice::from_ref(&frame)).await;
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

/// A worker may die of an attempt that has run for long: until its end, nothing else is on trial, and its frame comes back.
#[tokio::test]
async fn a_slow_suspect_stays_on_trial_until_its_end() {
    let world = World::new().await;
    world.receiver.on("/hangs", Script::always(Reply::Hang));
    let endpoint = world
        .endpoint("/hangs", |endpoint| {
            endpoint.timeout = Some(Duration::from_secs(2));
        })
        .await;
    let frames = [0, 1].map(|_| postrider_wire::encode_jobs(&[world.job(endpoint)]));
    publish_suspects(&world, &frames).await;

    let settings = Settings {
        slow_after: Duration::from_millis(10),
        ..World::settings()
    };
    let stop = CancellationToken::new();
    let worker = tokio::spawn(crate::run(settings, world.deps(), stop.clone()));
    for outcome in world.outcomes(2).await {
        let class = outcome.attempt.as_ref().map(|attempt| attempt.class);
        assert_eq!(class, Some(AttemptClass::Timeout), "{outcome:?}");
    }
    stop.cancel();
    let ended = tokio::time::timeout(PATIENCE, worker).await.expect("in time");
    ended.expect("in order");
    assert_eq!(world.receiver.peak_in_flight("/hangs"), 1, "one at a time");
}

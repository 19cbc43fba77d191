//! What every broker must do, as checks that panic where it does not.
//!
//! [`conformance_suite!`](crate::conformance_suite) makes a test of each. A check gets a broker of its own with empty queues
//! and at least two shards, and closes it. Waits are bounded by [`PATIENCE`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::{JoinHandle, JoinSet};

use crate::{Broker, Incoming, PublishError, Queue, Receipt, Subscription};

/// How long a check waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a check watches that something does not happen.
const WATCH: Duration = Duration::from_millis(300);

/// Makes one test of each check. The argument is an expression whose value is a future of an `Arc<dyn Broker>`.
#[macro_export]
macro_rules! conformance_suite {
    ($broker:expr) => {
        $crate::conformance_suite!($broker;
            an_acknowledged_frame_is_gone,
            frames_acknowledged_together_spare_the_one_between_them,
            frames_acknowledged_in_any_order_are_gone,
            queues_are_apart,
            unacknowledged_frames_return_in_order_and_counted,
            a_receipt_outliving_its_subscription_is_void,
            prefetch_bounds_what_is_out,
            a_stopped_subscription_keeps_what_it_has_and_takes_no_more,
            what_is_given_back_goes_to_others_at_once,
            the_journal_keeps_order_and_has_one_consumer,
            a_large_frame_arrives_unchanged,
            many_publishers_at_once_lose_nothing,
            closing_ends_subscriptions_and_publishers,
        );
    };
    ($broker:expr; $($check:ident),+ $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            $crate::conformance::$check($broker.await).await;
        }
    )+};
}

/// A frame is handed out once, and its acknowledgement ends it; `depth` shows both.
pub async fn an_acknowledged_frame_is_gone(broker: Arc<dyn Broker>) {
    publish(&broker, Queue::Deliver(0), 0..3).await;
    depth_becomes(&broker, Queue::Deliver(0), 3).await;
    let mut consumer = subscribe(&broker, Queue::Deliver(0), 10).await;
    for expected in 0..3 {
        let incoming = next(&mut consumer).await;
        assert_eq!((number(&incoming), incoming.delivery_count), (expected, 0));
        assert!(
            incoming.receipt.acknowledge().await,
            "frame {expected} is acknowledged"
        );
    }
    depth_becomes(&broker, Queue::Deliver(0), 0).await;
    drop(consumer);
    let mut consumer = subscribe(&broker, Queue::Deliver(0), 10).await;
    stays_silent(&mut consumer).await;
    broker.close().await;
}

/// Frames that are acknowledged at once are gone, and only they.
pub async fn frames_acknowledged_together_spare_the_one_between_them(broker: Arc<dyn Broker>) {
    publish(&broker, Queue::Deliver(0), 0..6).await;
    let mut consumer = subscribe(&broker, Queue::Deliver(0), 10).await;
    let mut receipts = Vec::new();
    for expected in 0..6 {
        let incoming = next(&mut consumer).await;
        assert_eq!(number(&incoming), expected);
        receipts.push(incoming.receipt);
    }
    let held = receipts.remove(2);
    assert!(Receipt::acknowledge_all(receipts).await);
    drop(consumer);
    let mut consumer = subscribe(&broker, Queue::Deliver(0), 10).await;
    let again = next(&mut consumer).await;
    assert_eq!((number(&again), again.delivery_count), (2, 1));
    assert!(!held.acknowledge().await, "the frame has another holder");
    assert!(Receipt::acknowledge_all([again.receipt]).await);
    stays_silent(&mut consumer).await;
    depth_becomes(&broker, Queue::Deliver(0), 0).await;
    broker.close().await;
}

/// Many tasks acknowledge, in no order: each frame once, and the consumer lives on.
pub async fn frames_acknowledged_in_any_order_are_gone(broker: Arc<dyn Broker>) {
    const FRAMES: u32 = 300;
    publish(&broker, Queue::Deliver(0), 0..FRAMES).await;
    let mut consumer = subscribe(&broker, Queue::Deliver(0), 100).await;
    let mut tasks = JoinSet::new();
    let mut held = Vec::new();
    for expected in 0..FRAMES {
        let incoming = next(&mut consumer).await;
        assert_eq!(number(&incoming), expected, "the consumer lives on");
        // One of seven waits for its successors.
        if expected % 7 == 0 {
            held.push(incoming.receipt);
        } else {
            tasks.spawn(incoming.receipt.acknowledge());
        }
        if held.len() > 5 {
            tasks.spawn(held.remove(0).acknowledge());
        }
    }
    assert!(Receipt::acknowledge_all(held).await);
    while let Some(acknowledged) = tasks.join_next().await {
        assert!(acknowledged.is_ok_and(|done| done), "each frame is acknowledged");
    }
    depth_becomes(&broker, Queue::Deliver(0), 0).await;
    drop(consumer);
    let mut consumer = subscribe(&broker, Queue::Deliver(0), 10).await;
    stays_silent(&mut consumer).await;
    broker.close().await;
}

/// Shards, `deliver` and `retry` do not mix.
pub async fn queues_are_apart(broker: Arc<dyn Broker>) {
    let queues = [
        Queue::Deliver(0),
        Queue::Deliver(1),
        Queue::Retry(0),
        Queue::Retry(1),
        Queue::Stray,
    ];
    for (name, queue) in (0..).zip(queues) {
        publish(&broker, queue, name..name + 1).await;
    }
    for (name, queue) in (0..).zip(queues) {
        let mut consumer = subscribe(&broker, queue, 10).await;
        let incoming = next(&mut consumer).await;
        assert_eq!(number(&incoming), name, "the frame of {queue:?}");
        assert!(incoming.receipt.acknowledge().await);
        stays_silent(&mut consumer).await;
    }
    broker.close().await;
}

/// What a dropped subscription held comes back in order, with a count of one more each time.
pub async fn unacknowledged_frames_return_in_order_and_counted(broker: Arc<dyn Broker>) {
    publish(&broker, Queue::Retry(1), 0..6).await;
    // All are held each time: nothing else may be handed out while they are on their way back.
    for round in 0..3 {
        let mut consumer = subscribe(&broker, Queue::Retry(1), 6).await;
        let mut held = Vec::new();
        for expected in 0..6 {
            let incoming = next(&mut consumer).await;
            assert_eq!((number(&incoming), incoming.delivery_count), (expected, round));
            held.push(incoming);
        }
        drop(consumer);
    }
    let mut consumer = subscribe(&broker, Queue::Retry(1), 10).await;
    for expected in 0..6 {
        let incoming = next(&mut consumer).await;
        assert_eq!((number(&incoming), incoming.delivery_count), (expected, 3));
        assert!(incoming.receipt.acknowledge().await);
    }
    broker.close().await;
}

/// An acknowledgement that comes too late says so, and does not end the frame.
pub async fn a_receipt_outliving_its_subscription_is_void(broker: Arc<dyn Broker>) {
    publish(&broker, Queue::Deliver(1), 7..8).await;
    let mut first = subscribe(&broker, Queue::Deliver(1), 1).await;
    let late = next(&mut first).await;
    drop(first);
    let mut second = subscribe(&broker, Queue::Deliver(1), 1).await;
    let again = next(&mut second).await;
    assert!(!late.receipt.acknowledge().await, "the frame has another holder");
    assert_eq!((number(&again), again.delivery_count), (7, 1));
    assert!(again.receipt.acknowledge().await);
    broker.close().await;
}

/// No more than `prefetch` frames are out; an acknowledgement lets the next one follow, a dropped receipt does not.
pub async fn prefetch_bounds_what_is_out(broker: Arc<dyn Broker>) {
    publish(&broker, Queue::Deliver(0), 0..6).await;
    let mut consumer = subscribe(&broker, Queue::Deliver(0), 2).await;
    drop(next(&mut consumer).await);
    let held = next(&mut consumer).await;
    stays_silent(&mut consumer).await;
    assert!(held.receipt.acknowledge().await);
    assert_eq!(number(&next(&mut consumer).await), 2);
    stays_silent(&mut consumer).await;
    broker.close().await;
}

/// What comes after the stop goes to others at once; what came before can be acknowledged.
pub async fn a_stopped_subscription_keeps_what_it_has_and_takes_no_more(broker: Arc<dyn Broker>) {
    publish(&broker, Queue::Deliver(0), 0..1).await;
    let mut first = subscribe(&broker, Queue::Deliver(0), 100).await;
    let held = next(&mut first).await;
    first.stop();
    let mut second = subscribe(&broker, Queue::Deliver(0), 100).await;
    // The broker may hand out some before it hears of the stop.
    let mut published = 1;
    let heard = tokio::time::timeout(PATIENCE, async {
        loop {
            publish(&broker, Queue::Deliver(0), published..published + 1).await;
            published += 1;
            if let Ok(Some(incoming)) = tokio::time::timeout(WATCH, second.next()).await {
                break incoming;
            }
        }
    });
    let heard = heard.await.expect("the stop is heard of");
    assert_eq!(number(&heard), published - 1);
    assert!(heard.receipt.acknowledge().await);
    publish(&broker, Queue::Deliver(0), 500..510).await;
    for expected in 500..510 {
        let incoming = next(&mut second).await;
        assert_eq!(number(&incoming), expected);
        assert!(incoming.receipt.acknowledge().await);
    }
    assert!(held.receipt.acknowledge().await, "it still holds that");
    drop(first);
    for _ in 2..published {
        assert!(
            next(&mut second).await.receipt.acknowledge().await,
            "what it had not read"
        );
    }
    depth_becomes(&broker, Queue::Deliver(0), 0).await;
    broker.close().await;
}

/// Read or not, and while the first one still holds something.
pub async fn what_is_given_back_goes_to_others_at_once(broker: Arc<dyn Broker>) {
    publish(&broker, Queue::Deliver(0), 0..6).await;
    let mut first = subscribe(&broker, Queue::Deliver(0), 100).await;
    let kept = next(&mut first).await;
    let back = next(&mut first).await;
    first.stop();
    back.receipt.give_back().await;
    let rest = tokio::spawn(async move {
        while let Some(unread) = first.next().await {
            unread.receipt.give_back().await;
        }
    });
    let mut second = subscribe(&broker, Queue::Deliver(0), 100).await;
    let mut came = Vec::new();
    for _ in 1..6 {
        let incoming = next(&mut second).await;
        came.push((number(&incoming), incoming.delivery_count));
        assert!(incoming.receipt.acknowledge().await);
    }
    came.sort_unstable();
    let numbers: Vec<u32> = came.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    // The first one may get it again before the broker hears of the stop.
    assert!(came[0].1 >= 1, "it was handed out before");
    stays_silent(&mut second).await;
    assert!(kept.receipt.acknowledge().await, "it still holds that");
    depth_becomes(&broker, Queue::Deliver(0), 0).await;
    rest.abort();
    broker.close().await;
}

/// The journal has one active consumer; the next takes over with everything unacknowledged, in order.
pub async fn the_journal_keeps_order_and_has_one_consumer(broker: Arc<dyn Broker>) {
    let mut publishers = Vec::new();
    for value in 0..10_u32 {
        publishers.push(publish_aside(&broker, Queue::Journal, value));
        depth_becomes(&broker, Queue::Journal, u64::from(value) + 1).await;
    }
    let mut active = subscribe(&broker, Queue::Journal, 10).await;
    let mut held = Vec::new();
    for expected in 0..10 {
        let incoming = next(&mut active).await;
        assert_eq!(number(&incoming), expected);
        held.push(incoming);
    }
    let mut spare = subscribe(&broker, Queue::Journal, 10).await;
    stays_silent(&mut spare).await;
    for incoming in held.drain(..2) {
        assert!(incoming.receipt.acknowledge().await);
    }
    drop(active);
    for expected in 2..10 {
        let incoming = next(&mut spare).await;
        assert_eq!((number(&incoming), incoming.delivery_count), (expected, 1));
        assert!(incoming.receipt.acknowledge().await);
    }
    for publisher in publishers {
        let confirmed = within(publisher).await.expect("the publisher's task ends");
        assert_eq!(confirmed, Ok(()));
    }
    broker.close().await;
}

/// 8 MiB arrive byte for byte.
pub async fn a_large_frame_arrives_unchanged(broker: Arc<dyn Broker>) {
    let frame: Bytes = (0..8 * 1024 * 1024_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect::<Vec<u8>>()
        .into();
    within(broker.publish(Queue::Deliver(0), frame.clone()))
        .await
        .expect("a frame of 8 MiB is taken");
    let mut consumer = subscribe(&broker, Queue::Deliver(0), 1).await;
    let incoming = next(&mut consumer).await;
    assert!(incoming.frame == frame, "the frame arrives as it was published");
    assert!(incoming.receipt.acknowledge().await);
    broker.close().await;
}

/// 1,000 publishes by 50 tasks all arrive.
pub async fn many_publishers_at_once_lose_nothing(broker: Arc<dyn Broker>) {
    let mut publishers = JoinSet::new();
    for task in 0..50_u32 {
        let broker = Arc::clone(&broker);
        publishers.spawn(async move {
            for n in 0..20 {
                let frame = frame_of(task * 20 + n);
                broker
                    .publish(Queue::Deliver(1), frame)
                    .await
                    .expect("the frame is taken");
            }
        });
    }
    let mut consumer = subscribe(&broker, Queue::Deliver(1), 100).await;
    let mut seen = HashSet::new();
    while seen.len() < 1_000 {
        let incoming = next(&mut consumer).await;
        assert!(seen.insert(number(&incoming)), "no frame comes twice");
        assert!(incoming.receipt.acknowledge().await);
    }
    while let Some(publisher) = within(publishers.join_next()).await {
        publisher.expect("the publisher's task ends");
    }
    broker.close().await;
}

/// After `close` subscriptions end and publishes fail at once.
pub async fn closing_ends_subscriptions_and_publishers(broker: Arc<dyn Broker>) {
    let mut consumers = Vec::new();
    for queue in [Queue::Deliver(0), Queue::Journal] {
        consumers.push(subscribe(&broker, queue, 5).await);
    }
    publish(&broker, Queue::Deliver(0), 0..1).await;
    let held = next(&mut consumers[0]).await;
    within(broker.close()).await;
    for consumer in &mut consumers {
        assert!(within(consumer.next()).await.is_none(), "the subscription ends");
    }
    assert!(
        !held.receipt.acknowledge().await,
        "nothing is acknowledged after the end"
    );
    let refused = within(broker.publish(Queue::Deliver(0), frame_of(1))).await;
    assert!(
        matches!(refused, Err(PublishError::Lost | PublishError::Down)),
        "{refused:?}"
    );
}

/// A frame that holds a number.
pub fn frame_of(value: u32) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}

/// The number in a frame of [`frame_of`].
pub fn number(incoming: &Incoming) -> u32 {
    let bytes = incoming.frame.as_ref().try_into().expect("a frame of four bytes");
    u32::from_be_bytes(bytes)
}

/// The next frame, which must come.
pub async fn next(consumer: &mut Subscription) -> Incoming {
    within(consumer.next()).await.expect("the subscription goes on")
}

/// Subscribes, which must work.
pub async fn subscribe(broker: &Arc<dyn Broker>, queue: Queue, prefetch: u16) -> Subscription {
    within(broker.subscribe(queue, prefetch))
        .await
        .expect("a subscription")
}

/// Publishes numbers one after the other, which must work.
pub async fn publish(broker: &Arc<dyn Broker>, queue: Queue, values: std::ops::Range<u32>) {
    for value in values {
        within(broker.publish(queue, frame_of(value)))
            .await
            .expect("the frame is taken");
    }
}

/// Waits until a queue holds so many frames.
pub async fn depth_becomes(broker: &Arc<dyn Broker>, queue: Queue, wanted: u64) {
    let mut last = None;
    let reached = tokio::time::timeout(PATIENCE, async {
        loop {
            let depth = broker.depth(queue).await.ok();
            if depth == Some(wanted) {
                return;
            }
            last = depth;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let reached = reached.await.is_ok();
    assert!(reached, "{queue:?} holds {last:?} frames, not {wanted}");
}

async fn stays_silent(consumer: &mut Subscription) {
    let unexpected = tokio::time::timeout(WATCH, consumer.next()).await;
    assert!(unexpected.is_err(), "nothing was to come: {unexpected:?}");
}

fn publish_aside(broker: &Arc<dyn Broker>, queue: Queue, value: u32) -> JoinHandle<Result<(), PublishError>> {
    let broker = Arc::clone(broker);
    tokio::spawn(async move { broker.publish(queue, frame_of(value)).await })
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it happens within the patience of the suite")
}

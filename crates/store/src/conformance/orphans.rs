//! Checks of deliveries that wait for a message that never came.

use std::time::Duration;

use postrider_model::{DeferReason, DeliveryState, Disposition, EndpointId, Message, Next, Record};

use super::fixture::{DAY, HOUR, SECOND, World, grant, must};
use crate::{OrphanReport, SharedStore};

/// A deferral that comes before its message.
fn deferred(world: &World, message: &Message, endpoint: EndpointId) -> Record {
    let next = Next::Deferred {
        reason: DeferReason::Rate,
        delay: Duration::ZERO,
    };
    world.ended(message, endpoint, 0, next)
}

async fn orphans(world: &World, cancel_after: Option<Duration>) -> OrphanReport {
    must(world.store.orphans(cancel_after, 100).await)
}

/// A row that waits for a message for more than 5 minutes is an alarm, not a loss.
pub async fn orphans_are_counted(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let young = world.message();
    let old = world.message_aged(600 * SECOND, |_| {});
    let batch = [&young, &old].map(|message| deferred(&world, message, endpoint));
    world.record(&batch).await;
    world.claim_until(endpoint).await;
    assert!(world.lease(&[grant(endpoint, 10)], HOUR).await.is_empty());
    let report = orphans(&world, Some(DAY)).await;
    assert_eq!((report.waiting, report.cancelled), (1, 0));
    world
        .record(&[world.accepted(&old, &[endpoint], Disposition::Queued)])
        .await;
    assert_eq!(orphans(&world, Some(DAY)).await, OrphanReport::default());
}

/// After a day nobody will send it again: it ends as cancelled, on record, and nothing else does.
pub async fn orphans_of_days_ago_are_cancelled(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let old = world.message_aged(DAY + HOUR, |_| {});
    let young = world.message_aged(HOUR, |_| {});
    let complete = world.message_aged(DAY + HOUR, |_| {});
    let mut batch = [&old, &young, &complete]
        .map(|message| deferred(&world, message, endpoint))
        .to_vec();
    batch.push(world.accepted(&complete, &[endpoint], Disposition::Queued));
    world.record(&batch).await;
    world.claim_until(endpoint).await;
    assert_eq!(world.lease(&[grant(endpoint, 10)], SECOND).await.len(), 1);
    assert_eq!(world.counts(endpoint).await.canceled, 0);

    let report = orphans(&world, None).await;
    assert_eq!(
        (report.waiting, report.cancelled),
        (2, 0),
        "not without being told"
    );
    let report = orphans(&world, Some(DAY)).await;
    assert_eq!((report.waiting, report.cancelled), (1, 1));
    assert_eq!(world.counts(endpoint).await.canceled, 1);
    let (waiting, _) = must(world.store.waiting_counts().await);
    assert_eq!(waiting.iter().map(|count| count.count).sum::<u64>(), 2);
    assert_eq!(orphans(&world, Some(DAY)).await.cancelled, 0);

    world
        .record(&[world.accepted(&old, &[endpoint], Disposition::Queued)])
        .await;
    let delivery = world.delivery(&old).await;
    assert_eq!(
        (delivery.state, delivery.waiting),
        (DeliveryState::Cancelled, None)
    );
    assert!(!world.state(&complete).await.is_terminal());
}

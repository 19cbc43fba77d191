//! Checks of `WaitingStore`: claims, pace and counts.

use std::time::Duration;

use postrider_model::{DeferReason, DeliveryId, Disposition, Next, Trigger};

use super::fixture::{HOUR, SECOND, WAITING, World, grant, must, until};
use crate::{Grant, SharedStore};

/// What waits is offered with its numbers, and leased with all that a worker needs.
pub async fn what_is_due_is_claimed_and_leased(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world
        .endpoint(|endpoint| endpoint.throttle_rate = Some(25))
        .await
        .id;
    assert_eq!(must(world.store.next_due().await), None);
    let before = must(world.store.now().await);
    let messages = world.accept_many(endpoint, 3, WAITING).await;
    let next = must(world.store.next_due().await).expect("something is due");
    assert!(next >= before && next <= must(world.store.now().await));

    let due = world.claim_until(endpoint).await;
    assert_eq!((due.app, due.throttle_rate), (world.app, Some(25)));
    assert_eq!((due.ordered, due.due, due.out), (false, 3, 0));
    assert!(due.since >= before);
    let granted = Grant {
        probe: true,
        has_token: true,
        ..grant(endpoint, 1)
    };
    let before = must(world.store.now().await);
    let jobs = world.lease(&[granted], 60 * SECOND).await;
    let after = must(world.store.now().await);
    assert_eq!(jobs.len(), 1);
    let job = &jobs[0];
    let message = messages
        .iter()
        .find(|message| message.id == job.message.id)
        .expect("ours");
    assert_eq!(*job.message, **message, "with its payload");
    assert_eq!(job.delivery, DeliveryId::derive(message.id, endpoint));
    assert_eq!(
        (job.endpoint, job.run, job.attempts, job.trigger),
        (endpoint, 1, 0, Trigger::Scheduled)
    );
    assert_eq!((job.probe, job.has_token, job.ordered), (true, true, false));
    let until = job.lease_until.expect("a lease ends");
    assert!(until >= before.plus(60 * SECOND) && until <= after.plus(60 * SECOND));

    let due = world.claim_until(endpoint).await;
    assert_eq!((due.due, due.out), (2, 1));
    world
        .record(&[world.ended(message, endpoint, 1, Next::Delivered)])
        .await;
    assert_eq!(world.lease(&[grant(endpoint, 10)], HOUR).await.len(), 2);
    assert!(world.claim().await.iter().all(|due| due.due == 0));
}

/// A claimed endpoint is not offered until its lease, or until the hold ends, also when more comes for it.
pub async fn a_claim_keeps_others_off(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    world.accept_many(endpoint, 2, WAITING).await;
    assert_eq!(
        must(
            world
                .store
                .claim_due(10, 10, Duration::from_millis(300), Duration::ZERO)
                .await
        )
        .len(),
        1
    );
    world.accept_many(endpoint, 1, WAITING).await;
    assert!(must(world.store.claim_due(10, 10, SECOND, Duration::ZERO).await).is_empty());
    // Its scheduler died: after the hold it is offered again.
    let due = world.claim_until(endpoint).await;
    assert_eq!(due.due, 3);
}

/// `not_before` holds although more is due, and although more comes; a change of the endpoint ends it.
pub async fn a_grant_paces_its_endpoint(store: SharedStore) {
    let world = World::new(store).await;
    let configured = world.endpoint(|_| {}).await;
    let slow = configured.id;
    let fast = world.endpoint(|_| {}).await.id;
    world.accept_many(slow, 2, WAITING).await;
    world.accept_many(fast, 2, WAITING).await;
    world.claim().await;
    let paced = Grant {
        not_before: HOUR,
        ..grant(slow, 1)
    };
    let jobs = world.lease(&[paced, grant(fast, 1)], HOUR).await;
    assert_eq!(jobs.len(), 2);
    world.claim_until(fast).await;
    assert!(world.claim().await.iter().all(|due| due.endpoint != slow));
    let next = must(world.store.next_due().await).expect("the slow one is due later");
    let now = must(world.store.now().await);
    assert!(next > now, "nothing is due now");
    world.accept_many(slow, 1, WAITING).await;
    assert!(world.claim().await.is_empty(), "it rests, whatever comes");
    must(
        world
            .store
            .update_endpoint(&configured, configured.updated_at)
            .await,
    );
    assert_eq!(world.claim_until(slow).await.due, 2);
}

/// Counts by reason, and the age of the oldest due row.
pub async fn what_waits_is_counted_by_reason(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let (counts, oldest) = must(world.store.waiting_counts().await);
    assert!(counts.is_empty() && oldest == Duration::ZERO);
    world.accept_many(endpoint, 4, WAITING).await;
    let slow = world.accept_many(endpoint, 3, Disposition::Queued).await;
    let rate = Next::Deferred {
        reason: DeferReason::Rate,
        delay: HOUR,
    };
    let batch: Vec<_> = slow
        .iter()
        .map(|message| world.ended(message, endpoint, 0, rate))
        .collect();
    world.record(&batch).await;
    let count = async |reason: DeferReason| {
        let (counts, _) = must(world.store.waiting_counts().await);
        counts
            .iter()
            .find(|count| count.reason == reason)
            .map_or(0, |count| count.count)
    };
    assert_eq!(
        (count(DeferReason::Backlog).await, count(DeferReason::Rate).await),
        (4, 3)
    );
    until("the oldest gets older", async || {
        let (_, oldest) = must(world.store.waiting_counts().await);
        (oldest > Duration::ZERO).then_some(())
    })
    .await;
    world
        .record(&[world.ended(&slow[0], endpoint, 0, Next::Delivered)])
        .await;
    assert_eq!(count(DeferReason::Rate).await, 2);
    let other = world.endpoint(|_| {}).await.id;
    world.accept_many(other, 1, WAITING).await;
    let busiest = must(world.store.busiest(10).await);
    let counts: Vec<_> = busiest.iter().map(|busy| (busy.endpoint, busy.count)).collect();
    assert_eq!(counts, [(endpoint, 6), (other, 1)]);
    assert!(busiest[0].due_at <= must(world.store.now().await), "{busiest:?}");
    assert_eq!(must(world.store.busiest(1).await).len(), 1);
}

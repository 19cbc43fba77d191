//! Checks of leases of `ordered` endpoints.

use std::time::Duration;

use postrider_model::{DeferReason, Disposition, EndpointId, Job, MessageId, Next};

use super::fixture::{HOUR, RETRY, World, grant, must, until};
use super::sweeps::change;
use crate::{Grant, SharedStore};

async fn ordered(world: &World) -> EndpointId {
    world.endpoint(|endpoint| endpoint.ordered = true).await.id
}

fn messages(jobs: &[Job]) -> Vec<MessageId> {
    jobs.iter().map(|job| job.message.id).collect()
}

/// Accepts messages one after the other; the ids in that order, which is not that of the ids themselves.
async fn accept_backwards(world: &World, endpoint: EndpointId, count: u64) -> Vec<MessageId> {
    let mut accepted = Vec::new();
    for n in 0..count {
        let message = world.message_aged(Duration::from_secs(n), |_| {});
        world
            .record(&[world.accepted(&message, &[endpoint], Disposition::Ordered)])
            .await;
        accepted.push(message.id);
    }
    accepted
}

/// The sequence is that of acceptance.
pub async fn a_run_comes_from_the_head_in_order(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = ordered(&world).await;
    let accepted = accept_backwards(&world, endpoint, 6).await;
    let due = world.claim_until(endpoint).await;
    assert_eq!((due.ordered, due.due, due.out), (true, 6, 0));
    let granted = Grant {
        ordered: true,
        ..grant(endpoint, 4)
    };
    let jobs = world.lease(&[granted], HOUR).await;
    assert_eq!(messages(&jobs), accepted[..4]);
    assert!(jobs.iter().all(|job| job.ordered && job.run == 1));
}

/// One run at a time, whoever asks.
pub async fn nothing_else_goes_while_a_lease_is_out(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = ordered(&world).await;
    accept_backwards(&world, endpoint, 5).await;
    assert_eq!(world.take(endpoint, 2).await.len(), 2);
    assert!(world.claim().await.iter().all(|due| due.due == 0));
    let granted = Grant {
        ordered: true,
        ..grant(endpoint, 2)
    };
    assert!(world.lease(&[granted], HOUR).await.is_empty());
}

/// A failed head waits for its retry, and everything behind it waits too.
pub async fn a_head_that_waits_blocks_the_rest(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = ordered(&world).await;
    let accepted = accept_backwards(&world, endpoint, 3).await;
    let jobs = world.take(endpoint, 3).await;
    let retry = Next::Retry {
        delay: Duration::from_millis(400),
    };
    let deferred = Next::Deferred {
        reason: DeferReason::Ordered,
        delay: Duration::ZERO,
    };
    let failed_at = must(world.store.now().await);
    world
        .record(&[
            world.ended(&jobs[0].message, endpoint, 1, retry),
            world.ended(&jobs[1].message, endpoint, 1, deferred),
            world.ended(&jobs[2].message, endpoint, 1, deferred),
        ])
        .await;
    let jobs = world.take(endpoint, 3).await;
    assert!(must(world.store.now().await) >= failed_at.plus(Duration::from_millis(350)));
    assert_eq!(messages(&jobs), accepted);
    assert_eq!((jobs[0].attempts, jobs[1].attempts), (2, 0));
    assert!(jobs.iter().all(|job| job.run == 2));
}

/// When a run has ended the next one goes, without waiting for its lease to end.
pub async fn a_removed_head_lets_the_next_go(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = ordered(&world).await;
    let accepted = accept_backwards(&world, endpoint, 5).await;
    let mut seen = Vec::new();
    while seen.len() < accepted.len() {
        let jobs = world.take(endpoint, 2).await;
        for job in &jobs {
            world
                .record(&[world.ended(&job.message, endpoint, job.run, Next::Delivered)])
                .await;
        }
        seen.extend(messages(&jobs));
    }
    assert_eq!(seen, accepted);
    until("nothing is left", async || {
        world.claim().await.is_empty().then_some(())
    })
    .await;
}

/// As before, for rows without a place in the sequence.
pub async fn what_waited_before_it_was_ordered_goes_run_after_run(store: SharedStore) {
    let world = World::new(store).await;
    let mut endpoint = world.endpoint(|_| {}).await;
    for _ in 0..5 {
        let message = world.message();
        let waiting = Disposition::Waiting(DeferReason::Backlog);
        world
            .record(&[world.accepted(&message, &[endpoint.id], waiting)])
            .await;
    }
    let was = endpoint.updated_at;
    endpoint.ordered = true;
    endpoint.updated_at = was.plus(Duration::from_millis(1));
    must(world.store.update_endpoint(&endpoint, was).await);
    let mut seen = 0;
    while seen < 5 {
        let jobs = world.take(endpoint.id, 2).await;
        assert!(jobs.iter().all(|job| job.ordered));
        for job in &jobs {
            world
                .record(&[world.ended(&job.message, endpoint.id, job.run, Next::Delivered)])
                .await;
        }
        seen += jobs.len();
    }
}

/// What waits for a retry from before has no place in the sequence: it goes when it is due, and nothing waits behind it.
pub async fn a_retry_from_before_it_was_ordered_holds_up_nothing(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let retried = world.message();
    let soon = world.message();
    let short = Next::Retry {
        delay: Duration::from_millis(300),
    };
    world
        .record(&[
            world.accepted(&retried, &[endpoint], Disposition::Queued),
            world.ended(&retried, endpoint, 0, RETRY),
        ])
        .await;
    change(&world, endpoint, |endpoint| endpoint.ordered = true).await;
    let first = accept_backwards(&world, endpoint, 2).await;
    until("what may go is ready", async || {
        let (_, age) = must(world.store.waiting_counts().await);
        (age > Duration::ZERO).then_some(())
    })
    .await;
    let jobs = world.take(endpoint, 10).await;
    assert_eq!(messages(&jobs), first);
    world
        .record(&[
            world.accepted(&soon, &[endpoint], Disposition::Queued),
            world.ended(&soon, endpoint, 0, short),
        ])
        .await;
    for job in &jobs {
        let ended = world.ended(&job.message, endpoint, job.run, Next::Delivered);
        world.record(&[ended]).await;
    }
    let jobs = world.take(endpoint, 10).await;
    assert_eq!(messages(&jobs), [soon.id], "when it is due");
    let second = accept_backwards(&world, endpoint, 2).await;
    assert!(
        world.claim().await.iter().all(|due| due.due == 0),
        "a lease is out"
    );
    world
        .record(&[world.ended(&soon, endpoint, jobs[0].run, Next::Delivered)])
        .await;
    assert_eq!(messages(&world.take(endpoint, 10).await), second);
}

/// An expired lease is due again, also of what was made by hand and has no place in the sequence.
pub async fn an_expired_lease_without_a_place_is_due_again(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = ordered(&world).await;
    let message = world.message();
    world
        .record(&[
            world.accepted(&message, &[], Disposition::Queued),
            world.by_hand(&message, endpoint, b"again"),
        ])
        .await;
    world.claim_until(endpoint).await;
    let granted = Grant {
        ordered: true,
        ..grant(endpoint, 1)
    };
    let jobs = world.lease(&[granted], Duration::from_millis(80)).await;
    assert_eq!(jobs.len(), 1);
    assert!(world.claim().await.iter().all(|due| due.due == 0), "it is out");
    let jobs = world.take(endpoint, 1).await;
    assert_eq!((messages(&jobs), jobs[0].run), (vec![message.id], 2));
    let outcome = postrider_model::Outcome {
        delivery: jobs[0].delivery,
        trigger: postrider_model::Trigger::Manual,
        ..world.outcome(&message, endpoint, 2, Next::Delivered)
    };
    world
        .record(&[postrider_model::Record::Outcome(Box::new(outcome))])
        .await;
    until("nothing is left", async || {
        world.claim().await.is_empty().then_some(())
    })
    .await;
}

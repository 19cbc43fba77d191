//! Checks of `WaitingStore`: leases.

use std::collections::HashSet;
use std::time::Duration;

use postrider_model::{CancelReason, DeferReason, DeliveryState, Disposition, Next};

use super::fixture::{HOUR, RETRY, SECOND, WAITING, World, grant, must, until};
use crate::{Grant, SharedStore};

/// The longest due goes first.
pub async fn rows_are_leased_in_order_of_due_time(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let mut expected = Vec::new();
    for delay in [300, 0, 600, 100_000, 900] {
        let message = world.message();
        let next = Next::Retry {
            delay: Duration::from_millis(delay),
        };
        world
            .record(&[
                world.accepted(&message, &[endpoint], Disposition::Queued),
                world.ended(&message, endpoint, 0, next),
            ])
            .await;
        expected.push((delay, message.id));
    }
    expected.sort_unstable();
    expected.pop();
    until("four are due", async || {
        let due = world.claim().await;
        let due = due.first().map_or(0, |due| due.due);
        if due < 4 {
            // Let go of the claim, so that the endpoint is looked at again.
            world.lease(&[grant(endpoint, 0)], HOUR).await;
        }
        (due >= 4).then_some(())
    })
    .await;
    let jobs = world.lease(&[grant(endpoint, 100)], HOUR).await;
    let leased: Vec<_> = jobs.iter().map(|job| job.message.id).collect();
    let expected: Vec<_> = expected.into_iter().map(|(_, id)| id).collect();
    assert_eq!(leased, expected);
    assert!(jobs.iter().all(|job| job.attempts == 1));
}

/// An expired lease needs nobody: the row is due again by itself, under a new run and for twice as long.
pub async fn an_expired_lease_is_due_again_and_the_next_is_longer(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let messages = world.accept_many(endpoint, 1, WAITING).await;
    let lease = Duration::from_millis(80);
    for run in 1..=4_u32 {
        world.claim_until(endpoint).await;
        let before = must(world.store.now().await);
        let jobs = world.lease(&[grant(endpoint, 10)], lease).await;
        let after = must(world.store.now().await);
        assert_eq!(
            jobs.iter().map(|job| job.run).collect::<Vec<_>>(),
            [run],
            "one lease a run"
        );
        let long = lease * 2_u32.pow(run - 1);
        let until = jobs[0].lease_until.expect("a lease ends");
        assert!(
            until >= before.plus(long) && until <= after.plus(long),
            "run {run} is leased for {long:?}"
        );
    }
    let stale = world
        .record(&[world.ended(&messages[0], endpoint, 3, RETRY)])
        .await;
    assert_eq!((stale.stale, stale.attempts), (1, 1));
    world
        .record(&[world.ended(&messages[0], endpoint, 4, Next::Delivered)])
        .await;
    assert_eq!(world.state(&messages[0]).await, DeliveryState::Delivered);

    world.accept_many(endpoint, 1, WAITING).await;
    world.claim_until(endpoint).await;
    let before = must(world.store.now().await);
    let jobs = world.lease(&[grant(endpoint, 1)], 20 * HOUR).await;
    assert!(
        jobs[0].lease_until >= Some(before.plus(HOUR)),
        "at least an hour, however long was asked for"
    );
}

/// While the journal lags a lease is out for longer, and keeps nothing else back but its sequence.
pub async fn an_expired_lease_waits_for_a_journal_that_is_behind(store: SharedStore) {
    let world = World::new(store).await;
    for ordered in [false, true] {
        let endpoint = world.endpoint(|endpoint| endpoint.ordered = ordered).await.id;
        let disposition = if ordered { Disposition::Ordered } else { WAITING };
        let granted = Grant {
            ordered,
            ..grant(endpoint, 10)
        };
        let leased = async |lag| {
            let leased = must(world.store.lease(&[granted], HOUR, lag).await);
            let runs = leased
                .iter()
                .map(|leased| (leased.job.message.id, leased.job.run));
            runs.collect::<Vec<_>>()
        };
        let first = world.accept_many(endpoint, 1, disposition).await.remove(0);
        world.claim_until(endpoint).await;
        let jobs = world.lease(&[granted], Duration::from_millis(50)).await;
        let end = jobs[0].lease_until.expect("a lease ends");
        until("it ends", async || {
            (must(world.store.now().await) > end).then_some(())
        })
        .await;
        let claimed = must(world.store.claim_due(10, 10, SECOND, HOUR).await);
        assert!(claimed.is_empty(), "{claimed:?}");
        assert_eq!(leased(HOUR).await, []);

        let second = world.accept_many(endpoint, 1, disposition).await.remove(0);
        let claimed = must(world.store.claim_due(10, 10, SECOND, HOUR).await);
        let counts: Vec<_> = claimed.iter().map(|due| (due.due, due.out)).collect();
        if ordered {
            assert_eq!((counts, leased(HOUR).await), (vec![], vec![]));
            assert_eq!(leased(Duration::ZERO).await, [(first.id, 2), (second.id, 1)]);
        } else {
            assert_eq!((counts, leased(HOUR).await), (vec![(1, 1)], vec![(second.id, 1)]));
            let soon = end.plus(Duration::from_millis(30));
            until("time passes", async || {
                (must(world.store.now().await) > soon).then_some(())
            })
            .await;
            assert_eq!(leased(Duration::from_millis(30)).await, [(first.id, 2)]);
        }
    }
}

/// What was not published comes back after the delay, unless the run has moved on.
pub async fn what_is_given_back_is_due_again(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let message = world.accept_many(endpoint, 1, WAITING).await.remove(0);
    let job = world.take(endpoint, 1).await.remove(0);
    must(world.store.give_back(&[(job.delivery, 7)], Duration::ZERO).await);
    assert_eq!(
        world.delivery(&message).await.waiting.map(|(due, _)| due),
        job.lease_until
    );
    must(
        world
            .store
            .give_back(&[(job.delivery, 1)], Duration::from_millis(50))
            .await,
    );
    let again = world.take(endpoint, 1).await.remove(0);
    assert_eq!((again.delivery, again.run), (job.delivery, 2));
}

/// Four schedulers over ten endpoints: each delivery is leased once.
pub async fn several_schedulers_never_lease_the_same_run(store: SharedStore) {
    const EACH: u64 = 60;
    let world = World::new(store).await;
    for _ in 0..10 {
        let endpoint = world.endpoint(|_| {}).await.id;
        world.accept_many(endpoint, EACH, WAITING).await;
    }
    let mut schedulers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = world.store.clone();
        schedulers.spawn(async move {
            let mut leased = Vec::new();
            let mut idle = 0;
            while idle < 20 {
                let due = must(store.claim_due(3, 100, SECOND, Duration::ZERO).await);
                if due.is_empty() {
                    idle += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
                idle = 0;
                let grants: Vec<_> = due.iter().map(|due| grant(due.endpoint, 7)).collect();
                let jobs = must(store.lease(&grants, HOUR, Duration::ZERO).await);
                leased.extend(
                    jobs.into_iter()
                        .map(|leased| (leased.job.delivery, leased.job.run)),
                );
            }
            leased
        });
    }
    let mut leased = Vec::new();
    while let Some(one) = schedulers.join_next().await {
        leased.extend(one.expect("no panic"));
    }
    assert_eq!(leased.len(), 600);
    assert!(leased.iter().all(|(_, run)| *run == 1));
    let deliveries: HashSet<_> = leased.iter().map(|(delivery, _)| *delivery).collect();
    assert_eq!(deliveries.len(), 600);
}

/// A row may come first; it goes once its message is there, and holds up nobody meanwhile.
pub async fn a_row_whose_message_is_missing_waits_for_it(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let early = world.message();
    let deferred = Next::Deferred {
        reason: DeferReason::Rate,
        delay: Duration::ZERO,
    };
    world.record(&[world.ended(&early, endpoint, 0, deferred)]).await;
    let whole = world.accept_many(endpoint, 1, WAITING).await.remove(0);
    let mut jobs = Vec::new();
    until("the other one is leased", async || {
        let job = world.take_all().await.into_iter().next()?;
        assert_eq!(job.message.id, whole.id, "not the one whose message is missing");
        Some(())
    })
    .await;
    world
        .record(&[world.accepted(&early, &[endpoint], Disposition::Queued)])
        .await;
    until("the early one is leased", async || {
        jobs = world.take_all().await;
        (!jobs.is_empty()).then_some(())
    })
    .await;
    let leased: Vec<_> = jobs.iter().map(|job| (job.message.id, job.run)).collect();
    assert_eq!(leased, [(early.id, 1)]);
}

/// A resend of a message whose payload is gone ends on record.
pub async fn a_delivery_without_payload_is_cancelled(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let message = world.message();
    world
        .record(&[
            world.accepted(&message, &[endpoint], Disposition::Queued),
            world.ended(
                &message,
                endpoint,
                0,
                Next::Cancelled(CancelReason::EndpointDisabled),
            ),
        ])
        .await;
    assert!(must(world.store.expunge_payload(world.app, message.id).await));
    world.record(&[world.by_hand(&message, endpoint, b"again")]).await;
    until("both have ended", async || {
        assert!(world.take_all().await.is_empty());
        let rows = world.deliveries(&message).await;
        let ended = rows
            .iter()
            .all(|row| row.state == DeliveryState::Cancelled && row.waiting.is_none());
        (rows.len() == 2 && ended).then_some(())
    })
    .await;
    assert_eq!(world.counts(endpoint).await.canceled, 2);
}

/// The in-process broker is empty after a restart: what it held is due now.
pub async fn a_restart_releases_every_lease(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    world.accept_many(endpoint, 5, Disposition::Leased).await;
    assert!(world.take_all().await.is_empty(), "the broker has them");
    assert_eq!(must(world.store.release_all_leases(false).await), 5);
    let jobs = world.take(endpoint, 10).await;
    assert_eq!(jobs.len(), 5);
    assert!(jobs.iter().all(|job| job.run == 1));
}

/// What is sent as it comes takes no room from what the scheduler hands out.
pub async fn fresh_deliveries_are_not_handed_out(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    world.accept_many(endpoint, 3, Disposition::Leased).await;
    world.accept_many(endpoint, 2, WAITING).await;
    let due = world.claim_until(endpoint).await;
    assert_eq!((due.due, due.out), (2, 0));
    assert_eq!(world.lease(&[grant(endpoint, 1)], HOUR).await.len(), 1);
    let due = world.claim_until(endpoint).await;
    assert_eq!((due.due, due.out), (1, 1));
}

/// The head of an `ordered` endpoint that waits for its retry is cancelled: the next one goes at once.
pub async fn a_cancelled_head_lets_the_next_one_go(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|endpoint| endpoint.ordered = true).await.id;
    let messages = world.accept_many(endpoint, 2, Disposition::Ordered).await;
    let job = world.take(endpoint, 1).await.remove(0);
    assert_eq!(job.message.id, messages[0].id);
    let retry = Next::Retry { delay: HOUR };
    world
        .record(&[world.ended(&messages[0], endpoint, job.run, retry)])
        .await;
    // Let go of the claim for what the outcome left to do.
    let early = world.claim().await;
    if !early.is_empty() {
        world.lease(&[grant(endpoint, 0)], HOUR).await;
    }
    assert!(world.claim().await.is_empty(), "the head waits");
    assert!(must(world.store.expunge_payload(world.app, messages[0].id).await));
    let jobs = world.take(endpoint, 10).await;
    let next: Vec<_> = jobs.iter().map(|job| job.message.id).collect();
    assert_eq!(next, [messages[1].id]);
}

//! Checks of `WaitingStore`.

use std::collections::HashSet;
use std::time::Duration;

use postrider_model::{CancelReason, DeferReason, DeliveryId, DeliveryState, Disposition, Next, Trigger};

use super::fixture::{HOUR, RETRY, SECOND, WAITING, World, grant, must, until};
use crate::{Grant, PARK_DEATHS, SUSPECT_DEATHS, SUSPECT_REST, SharedStore};

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

/// A death counts against what is leased, until an outcome is recorded; an in-flight notice is none.
pub async fn deaths_are_counted_until_an_outcome(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let leased = world.accept_many(endpoint, 1, Disposition::Leased).await;
    world
        .accept_many(endpoint, 1, Disposition::Waiting(DeferReason::Paused))
        .await;
    assert_eq!(must(world.store.release_all_leases(true).await), 1);
    assert_eq!(world.take_deaths(endpoint, 2).await, [0, 1]);
    assert_eq!(must(world.store.release_all_leases(false).await), 2);
    assert_eq!(
        world.take_deaths(endpoint, 2).await,
        [0, 1],
        "it stopped in order"
    );
    let in_flight = Next::InFlight { delay: HOUR };
    world
        .record(&[world.ended(&leased[0], endpoint, 2, in_flight)])
        .await;
    assert_eq!(must(world.store.release_all_leases(true).await), 2);
    assert_eq!(world.take_deaths(endpoint, 2).await, [1, 2]);
    let retry = Next::Retry {
        delay: Duration::ZERO,
    };
    world.record(&[world.ended(&leased[0], endpoint, 3, retry)]).await;
    assert_eq!(world.take_deaths(endpoint, 2).await, [0]);
}

/// Suspects go one at a time; one that was leased at five deaths is told apart and holds up nobody.
pub async fn suspects_go_one_at_a_time_until_parked(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    world.accept_many(endpoint, 3, Disposition::Leased).await;
    for _ in 1..SUSPECT_DEATHS {
        assert_eq!(must(world.store.release_all_leases(true).await), 3);
        assert_eq!(world.take(endpoint, 3).await.len(), 3);
    }
    assert_eq!(must(world.store.release_all_leases(true).await), 3);
    let released = must(world.store.now().await);
    let first = until("a suspect", async || {
        let mut jobs = world.take_all().await;
        assert!(jobs.len() <= 1, "one suspect at a time");
        jobs.pop()
    })
    .await;
    assert!(
        must(world.store.now().await) >= released.plus(SUSPECT_REST / 2),
        "suspects rest first"
    );
    world.accept_many(endpoint, 2, WAITING).await;
    assert_eq!(
        world.take_deaths(endpoint, 5).await,
        [0, 0],
        "others go meanwhile"
    );
    tokio::time::sleep(SECOND).await;
    assert!(world.take_all().await.is_empty(), "no other while it is out");

    // It dies with the process twice more, alone among the suspects.
    assert_eq!(must(world.store.release_all_leases(true).await), 3);
    let killer = until("the killer's turn", async || {
        let mut jobs = world.take_all_leased().await;
        jobs.retain(|leased| leased.deaths >= SUSPECT_DEATHS);
        assert!(jobs.len() <= 1, "one at a time");
        let leased = jobs.pop()?;
        if leased.job.delivery == first.delivery {
            return Some(leased);
        }
        let done = world.ended(&leased.job.message, endpoint, leased.job.run, Next::Delivered);
        world.record(&[done]).await;
        None
    })
    .await;
    assert_eq!(killer.deaths, SUSPECT_DEATHS + 1);
    must(world.store.release_all_leases(true).await);
    let killer = until("the killer again", async || {
        let jobs = world.take_all_leased().await;
        jobs.into_iter()
            .find(|leased| leased.job.delivery == first.delivery)
    })
    .await;
    assert_eq!(killer.deaths, PARK_DEATHS);
}

/// In a sequence a suspect is the only one of its run, and nothing overtakes it.
pub async fn a_suspect_in_a_sequence_goes_alone(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|endpoint| endpoint.ordered = true).await.id;
    let messages = world.accept_many(endpoint, 4, Disposition::Ordered).await;
    for _ in 0..SUSPECT_DEATHS {
        assert_eq!(world.take(endpoint, 2).await.len(), 2);
        must(world.store.release_all_leases(true).await);
    }
    for message in &messages[..2] {
        let jobs = world.take(endpoint, 4).await;
        let ids: Vec<_> = jobs.iter().map(|job| job.message.id).collect();
        assert_eq!(ids, [message.id], "a suspect");
        let done = world.ended(message, endpoint, jobs[0].run, Next::Delivered);
        world.record(&[done]).await;
    }
    assert_eq!(world.take(endpoint, 4).await.len(), 2, "the rest together");
}

/// The second worker to begin the same run learns of the first.
pub async fn a_trial_is_begun_once(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let delivery = DeliveryId::derive(world.message().id, endpoint);
    assert!(!must(world.store.begin_trial(delivery, 4).await));
    assert!(must(world.store.begin_trial(delivery, 4).await));
    assert!(!must(world.store.begin_trial(delivery, 5).await), "another run");
    must(world.store.retain(30 * 24 * HOUR, 90 * 24 * HOUR, 100).await);
    assert!(must(world.store.begin_trial(delivery, 4).await), "kept for a day");
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

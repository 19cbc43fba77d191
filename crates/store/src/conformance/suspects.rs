//! Checks of `WaitingStore`: deliveries that end processes.

use std::time::Duration;

use postrider_model::{DeferReason, DeliveryId, Disposition, Next};

use super::fixture::{HOUR, SECOND, WAITING, World, must, until};
use crate::{PARK_DEATHS, SUSPECT_DEATHS, SUSPECT_REST, SharedStore};

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

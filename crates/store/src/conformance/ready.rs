//! Checks of what could go now: the age of what is ready, and endpoints that wait for the end of a lease.

use std::time::Duration;

use postrider_model::{Disposition, EndpointId, UnixMillis};

use super::fixture::{HOUR, WAITING, World, grant, must, until};
use crate::{EndpointRef, Grant, SharedStore};

async fn age(world: &World) -> Duration {
    must(world.store.waiting_counts().await).1
}

/// Waits until the store's clock has moved on.
async fn until_past(world: &World, time: UnixMillis) {
    until("time passes", async || {
        (must(world.store.now().await) > time).then_some(())
    })
    .await;
}

async fn pause(world: &World, id: EndpointId) {
    let found = must(world.store.endpoint(world.app, &EndpointRef::Id(id)).await);
    let mut endpoint = found.expect("the endpoint is there");
    let was = endpoint.updated_at;
    endpoint.paused = true;
    must(world.store.update_endpoint(&endpoint, was).await);
}

/// What a limit, a pause or a sequence keeps back is not ready, however long it has been due.
pub async fn only_what_could_go_now_is_ready(store: SharedStore) {
    const REST: Duration = Duration::from_millis(400);
    let world = World::new(store).await;
    let limited = world.endpoint(|_| {}).await.id;
    let paused = world.endpoint(|_| {}).await.id;
    let ordered = world.endpoint(|endpoint| endpoint.ordered = true).await.id;
    world.accept_many(limited, 2, WAITING).await;
    world.accept_many(paused, 2, WAITING).await;
    world.accept_many(ordered, 2, Disposition::Ordered).await;
    until("what is due is ready", async || {
        (age(&world).await > Duration::ZERO).then_some(())
    })
    .await;

    pause(&world, paused).await;
    assert_eq!(world.claim().await.len(), 2);
    let granted_at = must(world.store.now().await);
    let run = Grant {
        ordered: true,
        ..grant(ordered, 1)
    };
    let kept = Grant {
        not_before: REST,
        ..grant(limited, 0)
    };
    assert_eq!(world.lease(&[kept, run], HOUR).await.len(), 1);
    let before = age(&world).await;
    let rested = granted_at.plus(REST);
    if must(world.store.now().await) < rested {
        assert_eq!(before, Duration::ZERO, "nothing could go");
    }
    until_past(&world, rested).await;
    let age = until("what was kept back is ready again", async || {
        let age = age(&world).await;
        (age > Duration::ZERO).then_some(age)
    })
    .await;
    let now = must(world.store.now().await);
    assert!(age <= now.since(rested), "{age:?} counts from when it could go");
    let due = world.claim_until(limited).await;
    assert!(due.since >= rested, "nor is the scheduler late before");

    let kept = Grant {
        not_before: HOUR,
        ..grant(limited, 0)
    };
    world.lease(&[kept], HOUR).await;
    until_past(
        &world,
        must(world.store.now().await).plus(Duration::from_millis(20)),
    )
    .await;
    assert_eq!(must(world.store.waiting_counts().await).1, Duration::ZERO);
}

/// A full endpoint rests until a lease of it ends; that wakes no other.
pub async fn a_full_endpoint_is_looked_at_when_a_lease_ends(store: SharedStore) {
    let world = World::new(store).await;
    let full = world.endpoint(|_| {}).await.id;
    let limited = world.endpoint(|_| {}).await.id;
    for endpoint in [full, limited] {
        world.accept_many(endpoint, 3, WAITING).await;
        world.claim_until(endpoint).await;
        let rests = Grant {
            not_before: HOUR,
            is_full: endpoint == full,
            ..grant(endpoint, 1)
        };
        assert_eq!(world.lease(&[rests], HOUR).await.len(), 1);
    }
    assert!(world.claim().await.is_empty());
    assert_eq!(must(world.store.look_again(&[limited]).await), 0);
    assert!(world.claim().await.is_empty());
    assert_eq!(must(world.store.look_again(&[limited, full]).await), 1);
    let due = world.claim_until(full).await;
    assert_eq!((due.due, due.out), (2, 1));
    assert_eq!(
        must(world.store.look_again(&[full]).await),
        0,
        "a claim is not ended"
    );

    let rests = Grant {
        not_before: HOUR,
        is_full: true,
        ..grant(full, 0)
    };
    world.lease(&[rests], HOUR).await;
    pause(&world, full).await;
    must(world.store.look_again(&[full]).await);
    assert!(world.claim().await.is_empty(), "it is paused");
}

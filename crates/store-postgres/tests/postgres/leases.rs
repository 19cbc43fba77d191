//! What one lease may hold, and what it does about a body that cannot be read.

use std::sync::Arc;
use std::time::Duration;

use postrider_model::{DeferReason, Disposition, Record, UnixMillis};
use postrider_store::{ConfigStore, EndpointRef, Grant, RecordStore, WaitingStore};

use crate::world::World;

const LEASE: Duration = Duration::from_secs(60);
const MIB: usize = 1024 * 1024;

fn grant(world: &World, ordered: bool) -> Grant {
    Grant {
        endpoint: world.endpoint,
        count: 100,
        probe: false,
        has_token: false,
        ordered,
        not_before: Duration::ZERO,
        is_full: false,
    }
}

/// Records messages of `bytes` each, oldest first.
async fn record(world: &World, count: usize, bytes: usize, disposition: Disposition) {
    for _ in 0..count {
        let mut message = world.message(UnixMillis::now());
        Arc::make_mut(&mut message).payload = vec![b'x'; bytes].into();
        let batch: [Record; 1] = [world.accepted(&message, disposition)];
        world.store.record(&batch).await.unwrap();
        // Ids of one millisecond are in no order.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn one_lease_of_large_bodies_is_bounded_and_the_rest_follows() {
    let world = World::new().await;
    record(&world, 12, MIB, Disposition::Waiting(DeferReason::Backlog)).await;
    let first = world.store.lease(&[grant(&world, false)], LEASE).await.unwrap();
    assert!((8..12).contains(&first.len()), "{} at once", first.len());
    let due = world.store.claim_due(10, 100, LEASE).await.unwrap();
    assert_eq!(
        due.len(),
        1,
        "what was left is due at once, without a rest: {due:?}"
    );
    let rest = world.store.lease(&[grant(&world, false)], LEASE).await.unwrap();
    assert_eq!(first.len() + rest.len(), 12);
}

#[tokio::test]
async fn a_body_that_cannot_be_read_holds_up_nobody_else() {
    let world = World::new().await;
    record(&world, 3, 10, Disposition::Waiting(DeferReason::Backlog)).await;
    spoil_the_first(&world).await;
    let leased = world.store.lease(&[grant(&world, false)], LEASE).await.unwrap();
    assert_eq!(leased.len(), 2);
}

#[tokio::test]
async fn nothing_overtakes_a_body_that_cannot_be_read_in_a_sequence() {
    let world = World::new().await;
    let mut endpoint = world
        .store
        .endpoint(world.app, &EndpointRef::Id(world.endpoint))
        .await
        .unwrap()
        .unwrap();
    endpoint.ordered = true;
    let was = endpoint.updated_at;
    world
        .store
        .update_endpoint(&endpoint, was)
        .await
        .unwrap()
        .unwrap();
    record(&world, 3, 10, Disposition::Ordered).await;
    spoil_the_first(&world).await;
    let leased = world.store.lease(&[grant(&world, true)], LEASE).await.unwrap();
    assert_eq!(leased.len(), 0);
}

async fn spoil_the_first(world: &World) {
    world
        .number(
            "UPDATE bodies SET sealed = '\\x00' WHERE id = (SELECT id FROM bodies ORDER BY id LIMIT 1) \
             RETURNING 1::bigint",
        )
        .await;
}

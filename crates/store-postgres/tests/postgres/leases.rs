//! What one lease may hold, how leases end, and what they do about a body that cannot be read or a message that is not there.

use std::sync::Arc;
use std::time::Duration;

use postrider_model::{DeferReason, DeliveryId, Disposition, Next, Record, UnixMillis};
use postrider_store::{ConfigStore, EndpointRef, Grant, RecordStore, WaitingStore};

use crate::world::{DAY, World};

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
    let first = world
        .store
        .lease(&[grant(&world, false)], LEASE, Duration::ZERO)
        .await
        .unwrap();
    assert!((8..12).contains(&first.len()), "{} at once", first.len());
    let due = world
        .store
        .claim_due(10, 100, LEASE, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(
        due.len(),
        1,
        "what was left is due at once, without a rest: {due:?}"
    );
    let rest = world
        .store
        .lease(&[grant(&world, false)], LEASE, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(first.len() + rest.len(), 12);
}

#[tokio::test]
async fn a_body_that_cannot_be_read_holds_up_nobody_else() {
    let world = World::new().await;
    record(&world, 3, 10, Disposition::Waiting(DeferReason::Backlog)).await;
    spoil_the_first(&world).await;
    let leased = world
        .store
        .lease(&[grant(&world, false)], LEASE, Duration::ZERO)
        .await
        .unwrap();
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
    let leased = world
        .store
        .lease(&[grant(&world, true)], LEASE, Duration::ZERO)
        .await
        .unwrap();
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

#[tokio::test]
async fn leases_are_given_back_released_and_cancelled_with_their_body() {
    let world = World::new().await;
    let messages: Vec<_> = (0..3).map(|_| world.message(UnixMillis::now())).collect();
    let batch: Vec<Record> = messages
        .iter()
        .map(|message| world.accepted(message, Disposition::Leased))
        .collect();
    world.store.record(&batch).await.unwrap();
    let grant = Grant {
        count: 2,
        probe: true,
        ..grant(&world, false)
    };
    assert!(
        world
            .store
            .lease(&[grant], DAY, Duration::ZERO)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(world.store.release_all_leases(false).await.unwrap(), 3);
    let jobs = world
        .store
        .lease(&[grant], Duration::from_secs(60), Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(jobs.len(), 2);
    assert!(jobs.iter().all(|leased| leased.job.run == 1 && leased.job.probe));
    let leases: Vec<(DeliveryId, u32)> = jobs
        .iter()
        .map(|leased| (leased.job.delivery, leased.job.run))
        .collect();
    world
        .store
        .give_back(&[(leases[0].0, 0)], Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(world.number("SELECT count(*) FROM waiting WHERE leased").await, 2);
    world.store.give_back(&leases, Duration::ZERO).await.unwrap();
    assert_eq!(
        world
            .number("SELECT count(*) FROM waiting WHERE leased OR lease_count > 0")
            .await,
        0
    );
    let due = world
        .store
        .claim_due(5, 5, Duration::ZERO, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!((due[0].due, due[0].out), (3, 0));

    world
        .number("WITH gone AS (DELETE FROM bodies RETURNING 1) SELECT count(*) FROM gone")
        .await;
    let all = Grant { count: 5, ..grant };
    assert!(
        world
            .store
            .lease(&[all], DAY, Duration::ZERO)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(world.number("SELECT count(*) FROM waiting").await, 0);
    assert_eq!(
        world
            .number("SELECT count(*) FROM deliveries WHERE state = 4 AND cancelled = 4")
            .await,
        3
    );
    assert!(world.store.next_due().await.unwrap().is_none());
}

#[tokio::test]
async fn a_row_before_its_message_is_leased_once_the_message_comes() {
    let world = World::new().await;
    let message = world.message(UnixMillis::now());
    world
        .store
        .record(&[world.outcome(
            &message,
            0,
            1,
            Next::Deferred {
                reason: DeferReason::Rate,
                delay: Duration::ZERO,
            },
        )])
        .await
        .unwrap();
    let grant = Grant {
        count: 1,
        ..grant(&world, false)
    };
    assert_eq!(
        world
            .store
            .claim_due(5, 5, DAY, Duration::ZERO)
            .await
            .unwrap()
            .len(),
        1
    );
    assert!(
        world
            .store
            .lease(&[grant], DAY, Duration::ZERO)
            .await
            .unwrap()
            .is_empty()
    );
    world
        .store
        .record(&[world.accepted(&message, Disposition::Queued)])
        .await
        .unwrap();
    assert_eq!(
        world
            .store
            .claim_due(5, 5, DAY, Duration::ZERO)
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        world
            .store
            .lease(&[grant], DAY, Duration::ZERO)
            .await
            .unwrap()
            .len(),
        1
    );
}

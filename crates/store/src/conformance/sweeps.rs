//! Checks of sweeps and what else `UpkeepStore` does.

use std::time::Duration;

use bytes::Bytes;
use postrider_model::{DeferReason, DeliveryState, Disposition, EndpointId, Next, UnixMillis};

use super::fixture::{WAITING, World, must};
use crate::{EndpointRef, SharedStore, SweepReport};

/// Sweeps until there is nothing left to do; the sum, and the most that one sweep cancelled.
async fn sweep_all(world: &World, limit: u32) -> (SweepReport, u64) {
    let mut sum = SweepReport::default();
    let mut most = 0;
    for _ in 0..1_000 {
        let report = must(world.store.sweep(limit).await);
        if report == SweepReport::default() {
            return (sum, most);
        }
        sum.cancelled += report.cancelled;
        sum.passed += report.passed;
        sum.recovered += report.recovered;
        most = most.max(report.cancelled);
    }
    panic!("sweeps never end: {sum:?}");
}

pub(super) async fn change(
    world: &World,
    id: EndpointId,
    change: impl FnOnce(&mut postrider_model::Endpoint),
) {
    let found = must(world.store.endpoint(world.app, &EndpointRef::Id(id)).await);
    let mut endpoint = found.expect("the endpoint is there");
    let was = endpoint.updated_at;
    change(&mut endpoint);
    must(world.store.update_endpoint(&endpoint, was).await);
}

/// Pause keeps, resume releases what came before and during.
pub async fn a_paused_endpoint_keeps_what_waits(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let messages = world.accept_many(endpoint, 3, WAITING).await;
    change(&world, endpoint, |endpoint| endpoint.paused = true).await;
    world
        .accept_many(endpoint, 2, Disposition::Waiting(DeferReason::Paused))
        .await;
    assert!(world.claim().await.is_empty());
    assert_eq!(
        must(world.store.next_due().await),
        None,
        "a paused endpoint costs nothing"
    );
    assert_eq!(must(world.store.sweep(100).await).cancelled, 0);
    assert_eq!(world.state(&messages[0]).await, DeliveryState::Pending);
    change(&world, endpoint, |endpoint| endpoint.paused = false).await;
    assert_eq!(world.take(endpoint, 10).await.len(), 5);
}

/// Disabling cancels in chunks, on record.
pub async fn a_disabled_endpoint_is_swept(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let other = world.endpoint(|_| {}).await.id;
    let messages = world.accept_many(endpoint, 25, WAITING).await;
    world.accept_many(other, 2, WAITING).await;
    change(&world, endpoint, |endpoint| endpoint.disabled = true).await;
    let late = world.accept_many(endpoint, 1, WAITING).await.remove(0);
    assert!(world.claim().await.iter().all(|due| due.endpoint == other));
    let (sum, most) = sweep_all(&world, 10).await;
    assert_eq!(sum.cancelled, 26);
    assert!(most <= 10, "a sweep is a chunk");
    for message in messages.iter().chain([&late]) {
        let delivery = world.delivery(message).await;
        assert_eq!(
            (delivery.state, delivery.waiting),
            (DeliveryState::Cancelled, None)
        );
    }
    let counts = world.counts(endpoint).await;
    assert_eq!((counts.canceled, counts.pending), (26, 0));
    assert_eq!(world.counts(other).await.pending, 2);
    let (waiting, _) = must(world.store.waiting_counts().await);
    assert_eq!(waiting.iter().map(|count| count.count).sum::<u64>(), 2);
}

/// So do deleting an endpoint and deleting its application.
pub async fn deleted_endpoints_and_applications_are_swept(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let other = world.endpoint(|_| {}).await.id;
    let first = world.accept_many(endpoint, 3, WAITING).await;
    let second = world.accept_many(other, 3, WAITING).await;
    let now = UnixMillis::now();
    must(world.store.delete_endpoint(world.app, endpoint, now).await);
    let (sum, _) = sweep_all(&world, 100).await;
    assert_eq!(sum.cancelled, 3);
    assert_eq!(world.state(&first[0]).await, DeliveryState::Cancelled);
    assert_eq!(world.state(&second[0]).await, DeliveryState::Pending);

    must(world.store.delete_app(world.app, now).await);
    assert!(world.claim().await.is_empty());
    let (sum, _) = sweep_all(&world, 100).await;
    assert_eq!(sum.cancelled, 3);
    assert_eq!(world.counts(other).await.canceled, 3);
}

/// Endpoints for which nothing waits are work too: what comes behind them is reached without a rest.
pub async fn idle_endpoints_of_a_deleted_application_hold_up_nobody(store: SharedStore) {
    let world = World::new(store).await;
    let mut idle = Vec::new();
    for _ in 0..150 {
        idle.push(world.endpoint(|_| {}).await.id);
    }
    // They are looked at in the order of their ids.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let busy = world.endpoint(|_| {}).await.id;
    let message = world.message();
    world.record(&[world.accepted(&message, &idle, WAITING)]).await;
    let ended: Vec<_> = idle
        .iter()
        .map(|endpoint| world.ended(&message, *endpoint, 0, Next::Delivered))
        .collect();
    world.record(&ended).await;
    world.accept_many(busy, 3, WAITING).await;
    must(world.store.delete_app(world.app, UnixMillis::now()).await);
    let (sum, _) = sweep_all(&world, 100).await;
    assert_eq!((sum.cancelled, sum.passed), (3, 151));
}

/// Enabling again saves what has not been swept.
pub async fn an_endpoint_enabled_in_time_keeps_the_rest(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    world.accept_many(endpoint, 20, WAITING).await;
    change(&world, endpoint, |endpoint| endpoint.disabled = true).await;
    assert_eq!(must(world.store.sweep(5).await).cancelled, 5);
    change(&world, endpoint, |endpoint| endpoint.disabled = false).await;
    assert_eq!(must(world.store.sweep(100).await).cancelled, 0);
    assert_eq!(world.take(endpoint, 100).await.len(), 15);
}

/// Parked bytes come back as they were, newest first, and are taken once.
pub async fn parked_rows_are_kept_and_taken(store: SharedStore) {
    let bytes = Bytes::from_static(b"\0\xffnot a frame");
    assert!(must(store.park("frame", "unknown version", &bytes).await));
    assert!(must(store.park("job", "crashed five times", &Bytes::new()).await));
    for _ in 0..2 {
        let again = must(store.park("frame", "whatever the reason", &bytes).await);
        assert!(!again, "the same bytes are parked once");
    }
    let rows = must(store.parked(10, None).await).rows;
    let kinds: Vec<_> = rows.iter().map(|row| row.kind.as_str()).collect();
    assert_eq!(kinds, ["job", "frame"]);
    let newest = must(store.parked(1, None).await);
    assert_eq!((newest.rows.len(), newest.cut), (1, Some(rows[0].id)));
    let last = must(store.parked(1, newest.cut).await);
    assert_eq!((last.rows[0].id, last.cut), (rows[1].id, None));
    assert_eq!(must(store.parked_count().await), 2);
    let row = must(store.parked_row(rows[1].id).await).expect("there");
    assert_eq!((row.kind.as_str(), &row.bytes), ("frame", &bytes));
    let row = must(store.unpark(rows[1].id).await).expect("there");
    assert_eq!((&row.bytes, row.reason.as_str()), (&bytes, "unknown version"));
    assert!(must(store.unpark(rows[1].id).await).is_none());
    assert!(must(store.parked_row(rows[1].id).await).is_none());
    assert_eq!(must(store.parked(10, None).await).rows.len(), 1);
    assert!(
        must(store.park("frame", "again", &row.bytes).await),
        "it was taken out"
    );
}

/// Migrating what is current does nothing, also from several places at once.
pub async fn the_schema_is_current(store: SharedStore) {
    must(store.check_schema().await);
    let (one, two) = tokio::join!(store.migrate(), store.migrate());
    let (before, after) = must(one);
    assert_eq!(before, after);
    assert_eq!(must(two), (before, after));
    must(store.ping().await);
}

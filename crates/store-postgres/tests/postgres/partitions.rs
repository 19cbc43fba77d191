//! Days: made on demand, dropped by retention.

use std::sync::Arc;
use std::time::Duration;

use postrider_model::{DeferReason, DeliveryState, Disposition, Next, UnixMillis};
use postrider_store::{LogStore, Page, RecordStore, StoreError, TimeRange, UpkeepStore};

use crate::world::{DAY, World};

const FOR_EVER: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

fn newest<C>() -> Page<C> {
    Page {
        after: None,
        backwards: false,
        descending: true,
        limit: 50,
    }
}

#[tokio::test]
async fn a_day_without_a_partition_is_made_on_demand() {
    let world = World::new().await;
    let now = UnixMillis::now();
    let (early, late) = (
        world.message(now.minus(40 * DAY)),
        world.message(now.plus(5 * DAY)),
    );
    let batch = [
        world.accepted(&early, Disposition::Queued),
        world.outcome(&early, 0, 1, Next::Delivered),
        world.accepted(&late, Disposition::Queued),
    ];
    let report = world.store.record(&batch).await.unwrap();
    assert_eq!((report.messages, report.attempts), (2, 1));
    let listed = world
        .store
        .messages(world.app, &Default::default(), &newest())
        .await
        .unwrap();
    let ids: Vec<_> = listed.rows.iter().map(|row| row.message.id).collect();
    assert_eq!(ids, [late.id, early.id]);
}

#[tokio::test]
async fn a_record_far_from_the_clock_is_refused() {
    let world = World::new().await;
    let far = world.message(UnixMillis::now().plus(400 * DAY));
    let refused = world
        .store
        .record(&[world.accepted(&far, Disposition::Queued)])
        .await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
}

#[tokio::test]
async fn a_partition_that_another_process_dropped_is_made_again() {
    let world = World::new().await;
    let at = UnixMillis::now().minus(30 * DAY);
    let first = world.message(at);
    world
        .store
        .record(&[world.accepted(&first, Disposition::Queued)])
        .await
        .unwrap();
    let other = world.again();
    let dropped = other.retain(10 * DAY, 10 * DAY, 100).await.unwrap();
    assert_eq!((dropped.payloads, dropped.messages), (1, 1));
    let second = world.message(at);
    let report = world
        .store
        .record(&[world.accepted(&second, Disposition::Queued)])
        .await
        .unwrap();
    assert_eq!(report.messages, 1);
}

#[tokio::test]
async fn payload_retention_drops_bodies_and_cancels_what_waits_first() {
    let world = World::new().await;
    let now = UnixMillis::now();
    let (old, fresh) = (world.message(now.minus(9 * DAY)), world.message(now));
    let wait = Disposition::Waiting(DeferReason::Paused);
    world
        .store
        .record(&[world.accepted(&old, wait), world.accepted(&fresh, wait)])
        .await
        .unwrap();

    let report = world.store.retain(7 * DAY, FOR_EVER, 100).await.unwrap();
    assert_eq!((report.cancelled, report.payloads, report.messages), (1, 1, 0));
    let row = world
        .store
        .message(world.app, old.id, true)
        .await
        .unwrap()
        .unwrap();
    assert!(row.payload_gone && row.message.payload.is_empty());
    assert!(world.store.payload(old.id).await.unwrap().is_none());
    assert!(world.store.payload(fresh.id).await.unwrap().is_some());
    let listed = world
        .store
        .deliveries_of_endpoint(world.app, world.endpoint, &Default::default(), &newest(), false)
        .await
        .unwrap();
    let states: Vec<_> = listed.rows.iter().map(|(delivery, _)| delivery.state).collect();
    assert_eq!(states, [DeliveryState::Pending, DeliveryState::Cancelled]);
    let counts = world
        .store
        .endpoint_counts(world.endpoint, TimeRange::default())
        .await
        .unwrap();
    assert_eq!((counts.pending, counts.canceled), (1, 1));
    assert_eq!(
        world.store.retain(7 * DAY, FOR_EVER, 100).await.unwrap(),
        Default::default()
    );
}

#[tokio::test]
async fn log_retention_drops_whole_days() {
    let world = World::new().await;
    let now = UnixMillis::now();
    let mut batch = Vec::new();
    for days in [3_u32, 20, 21] {
        let message = world.message(now.minus(days * DAY));
        batch.push(world.accepted(&message, Disposition::Queued));
        batch.push(world.outcome(&message, 0, 1, Next::Delivered));
    }
    world.store.record(&batch).await.unwrap();
    // A chunk is one day's tables.
    while world.store.retain(14 * DAY, 14 * DAY, 100).await.unwrap() != Default::default() {}
    for (table, statement) in [
        ("messages", "SELECT count(*) FROM messages"),
        ("bodies", "SELECT count(*) FROM bodies"),
        ("deliveries", "SELECT count(*) FROM deliveries"),
        ("attempts", "SELECT count(*) FROM attempts"),
    ] {
        assert_eq!(world.number(statement).await, 1, "{table}");
    }
    let old = world
        .number("SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent WHERE c.relname = 'messages'")
        .await;
    assert_eq!(
        old, 5,
        "yesterday to the day after tomorrow, and the day of the row that is left"
    );
}

#[tokio::test]
async fn a_message_may_keep_its_payload_for_its_own_time() {
    let world = World::new().await;
    let now = UnixMillis::now();
    let mut long = (*world.message(now.minus(30 * DAY))).clone();
    long.payload_retention_days = Some(60);
    let mut short = (*world.message(now.minus(3 * DAY))).clone();
    short.payload_retention_days = Some(2);
    let (long, short) = (Arc::new(long), Arc::new(short));
    world
        .store
        .record(&[
            world.accepted(&long, Disposition::Queued),
            world.accepted(&short, Disposition::Queued),
        ])
        .await
        .unwrap();
    let report = world.store.retain(14 * DAY, FOR_EVER, 100).await.unwrap();
    assert_eq!(report.payloads, 1);
    assert!(world.store.payload(long.id).await.unwrap().is_some());
    assert!(world.store.payload(short.id).await.unwrap().is_none());
}

#[tokio::test]
async fn a_dropped_body_does_not_come_back_with_its_record() {
    let world = World::new().await;
    let message = world.message(UnixMillis::now());
    let accepted = world.accepted(&message, Disposition::Queued);
    world.store.record(std::slice::from_ref(&accepted)).await.unwrap();
    assert!(world.store.expunge_payload(world.app, message.id).await.unwrap());
    let report = world.store.record(&[accepted]).await.unwrap();
    assert_eq!(report.messages, 0);
    assert!(world.store.payload(message.id).await.unwrap().is_none());
}

/// The rows of a day that a long read keeps from going are refused by themselves: the journal goes on with the others.
#[tokio::test]
async fn a_day_that_cannot_go_yet_holds_up_no_other() {
    let world = World::new().await;
    let expired = world.message(UnixMillis::now().minus(30 * DAY));
    let gone = world.accepted(&expired, Disposition::Queued);
    world.store.record(&[gone]).await.unwrap();
    let pool = sqlx::PgPool::connect(world.database.url()).await.unwrap();
    let mut reader = pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE deliveries IN ACCESS SHARE MODE")
        .execute(&mut *reader)
        .await
        .unwrap();
    let retained = world.again().retain(10 * DAY, 10 * DAY, 100).await;
    assert!(
        retained.is_err(),
        "the day was to stay half removed: {retained:?}"
    );

    let again = world.message(expired.id.created_at());
    let fresh = world.message(UnixMillis::now());
    let old = world.accepted(&again, Disposition::Queued);
    let new = world.accepted(&fresh, Disposition::Queued);
    let refused = world.store.record(&[new.clone(), old.clone()]).await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    assert_eq!(world.store.record(&[new]).await.unwrap().messages, 1);
    let refused = world.store.record(std::slice::from_ref(&old)).await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");

    reader.rollback().await.unwrap();
    world.store.retain(10 * DAY, 10 * DAY, 100).await.unwrap();
    assert_eq!(world.store.record(&[old]).await.unwrap().messages, 1);
}

/// What is on record of a day whose payloads alone are on their way out still moves on.
#[tokio::test]
async fn payloads_that_cannot_go_yet_hold_up_no_outcome() {
    let world = World::new().await;
    let message = world.message(UnixMillis::now().minus(30 * DAY));
    let accepted = world.accepted(&message, Disposition::Queued);
    world.store.record(&[accepted]).await.unwrap();
    let pool = sqlx::PgPool::connect(world.database.url()).await.unwrap();
    let mut reader = pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE bodies IN ACCESS SHARE MODE")
        .execute(&mut *reader)
        .await
        .unwrap();
    let retained = world.again().retain(10 * DAY, FOR_EVER, 100).await;
    assert!(
        retained.is_err(),
        "the day was to stay half removed: {retained:?}"
    );
    let outcome = world.outcome(&message, 0, 1, Next::Delivered);
    assert_eq!(world.again().record(&[outcome]).await.unwrap().attempts, 1);
}

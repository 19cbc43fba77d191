//! What the recorder does with what it cannot write, and what is told of it.

use std::time::Duration;

use postrider_broker::Queue;
use postrider_ledger::Settings;
use postrider_model::Disposition;

use crate::world::{PATIENCE, World, until};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Far more than it takes to write a record.
const OLD: Duration = Duration::from_secs(100);

#[tokio::test]
async fn what_is_parked_again_is_parked_once() {
    let world = World::new(Settings::default()).await;
    let message = world.message(Duration::ZERO, "a");
    let accepted = world.accepted(&message, Disposition::Queued);
    world.journal.publish(vec![accepted]).await.unwrap();
    for _ in 0..3 {
        world.journal.publish(vec![world.parked(&message)]).await.unwrap();
        // The next one is made at another time.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let other = world.message(Duration::ZERO, "a");
    world.journal.publish(vec![world.parked(&other)]).await.unwrap();
    assert_eq!(world.store.parked_count().await.unwrap(), 2);
}

#[tokio::test]
async fn the_journal_goes_on_without_what_nobody_takes_and_loses_nothing() {
    let settings = Settings {
        held_retry: Duration::from_secs(3),
        ..Settings::default()
    };
    let world = World::new(settings).await;
    world
        .sql()
        .execute_batch(
            "CREATE TRIGGER refuse_message BEFORE INSERT ON messages WHEN NEW.event_type = 'bad'
                 BEGIN SELECT RAISE(ABORT, 'refused'); END;
             CREATE TRIGGER refuse_parked BEFORE INSERT ON parked BEGIN SELECT RAISE(ABORT, 'refused'); END;",
        )
        .unwrap();
    let bad = world.accepted(&world.message(OLD, "bad"), Disposition::Queued);
    let journal = world.journal.clone();
    let publishing = tokio::spawn(async move { journal.publish(vec![bad]).await });
    until("it is held", async || {
        (world.metric("postrider_journal_held_frames") >= 1.0).then_some(())
    })
    .await;
    let good = world.message(Duration::ZERO, "good");
    let accepted = world.accepted(&good, Disposition::Queued);
    world.journal.publish(vec![accepted]).await.unwrap();
    let found = world.store.message(world.app, good.id, false).await.unwrap();
    assert!(found.is_some(), "the journal goes on");
    assert!(!publishing.is_finished(), "what is not written is not confirmed");
    assert_eq!(world.broker.depth(Queue::Journal).await.unwrap(), 1);
    until("it is told of", async || {
        (world.metric("postrider_journal_lag_seconds") >= OLD.as_secs_f64()).then_some(())
    })
    .await;

    world.sql().execute_batch("DROP TRIGGER refuse_parked").unwrap();
    until("it is parked", async || {
        (world.store.parked_count().await.unwrap() == 1).then_some(())
    })
    .await;
    until("the journal is empty", async || {
        let is_empty = world.broker.depth(Queue::Journal).await.unwrap() == 0;
        (is_empty && world.metric("postrider_journal_held_frames") == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_lag_is_the_age_of_what_is_not_written() {
    let world = World::new(Settings::default()).await;
    let lag = || world.metric("postrider_journal_lag_seconds");
    let lock = world.sql();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let accepted = world.accepted(&world.message(OLD, "a"), Disposition::Queued);
    let journal = world.journal.clone();
    let publishing = tokio::spawn(async move { journal.publish(vec![accepted]).await });
    let seen = until("what waits for the store is told of", async || {
        (lag() >= OLD.as_secs_f64()).then(lag)
    })
    .await;
    until("it gets older", async || (lag() >= seen + 3.0).then_some(())).await;
    lock.execute_batch("COMMIT").unwrap();
    until("it is written", async || {
        (lag() < OLD.as_secs_f64()).then_some(())
    })
    .await;
    publishing.abort();
}

#[tokio::test]
async fn a_delivery_whose_message_never_comes_is_given_up() {
    let world = World::new(Settings::default()).await;
    let old = world.message(DAY * 2, "a");
    let young = world.message(DAY / 2, "a");
    let batch = vec![world.deferred(&old), world.deferred(&young)];
    world.journal.publish(batch).await.unwrap();
    let canceled = async || {
        let range = postrider_store::TimeRange::default();
        let counts = world.store.endpoint_counts(world.endpoint, range).await.unwrap();
        (counts.canceled, counts.pending)
    };
    until("the old one is cancelled", async || {
        (canceled().await == (1, 1)).then_some(())
    })
    .await;
    until("it is counted", async || {
        (world.metric("postrider_orphans_cancelled_total") >= 1.0).then_some(())
    })
    .await;
    // It stays so: the young one may still get its message.
    tokio::time::timeout(PATIENCE, async {
        while world.store.orphans(None, 10).await.unwrap().waiting != 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(canceled().await, (1, 1));
}

//! Facts that come again, and what a batch reads when many were recorded before it.

use std::time::Duration;

use postrider_model::{Accepted, CancelReason, Disposition, Message, Next, Record, UnixMillis};
use postrider_store::{LogStore, RecordStore, UpkeepStore};
use postrider_testkit::wait::{Poll, wait_for};

use crate::world::World;

/// A message that nobody subscribes to: nothing but its own row tells that it was recorded.
fn without_deliveries(record: Record) -> Record {
    match record {
        Record::Accepted(accepted) => Record::Accepted(Accepted {
            deliveries: Vec::new(),
            ..accepted
        }),
        outcome @ Record::Outcome(_) => outcome,
    }
}

#[tokio::test]
async fn a_repeat_among_new_facts_is_passed_over() {
    let world = World::new().await;
    let (old, new) = (world.message(UnixMillis::now()), world.message(UnixMillis::now()));
    let repeated = without_deliveries(world.accepted(&old, Disposition::Queued));
    let first = world.store.record(std::slice::from_ref(&repeated)).await.unwrap();
    assert_eq!((first.messages, first.attempts), (1, 0));
    assert!(world.store.expunge_payload(world.app, old.id).await.unwrap());
    let batch = [
        world.accepted(&new, Disposition::Queued),
        repeated,
        world.outcome(&new, 0, 1, Next::Delivered),
    ];
    let second = world.store.record(&batch).await.unwrap();
    assert_eq!((second.messages, second.attempts), (1, 1));
    let third = world.store.record(&batch).await.unwrap();
    assert_eq!((third.messages, third.attempts), (0, 0));
    assert_eq!(world.number("SELECT count(*) FROM messages").await, 2);
    assert_eq!(world.number("SELECT count(*) FROM attempts").await, 1);
    assert_eq!(
        world.number("SELECT count(*) FROM bodies").await,
        1,
        "what was expunged stays so"
    );
    assert_eq!(
        world
            .number("SELECT delivered * 10 + pending FROM counters")
            .await,
        10
    );
}

#[tokio::test]
async fn a_batch_that_holds_facts_twice_records_them_once() {
    let world = World::new().await;
    let message = world.message(UnixMillis::now());
    let accepted = world.accepted(&message, Disposition::Queued);
    let outcome = world.outcome(&message, 0, 1, Next::Delivered);
    let batch = [accepted.clone(), outcome.clone(), accepted, outcome];
    let report = world.store.record(&batch).await.unwrap();
    assert_eq!((report.messages, report.attempts), (1, 1));
    assert_eq!(world.number("SELECT count(*) FROM attempts").await, 1);
}

/// Plans are made while the day's partition is empty, when any order of a join looks as good as another.
#[tokio::test]
async fn a_batch_reads_its_own_rows_and_not_the_day() {
    const BATCHES: usize = 40;
    const MESSAGES: usize = 50;
    let world = World::new().await;
    let batches: Vec<Vec<_>> = (0..BATCHES)
        .map(|_| (0..MESSAGES).map(|_| world.message(UnixMillis::now())).collect())
        .collect();
    for batch in &batches {
        let accepted: Vec<Record> = batch
            .iter()
            .map(|message| world.accepted(message, Disposition::Queued))
            .collect();
        world.store.record(&accepted).await.unwrap();
    }
    for batch in &batches {
        let ended: Vec<Record> = batch
            .iter()
            .map(|message| world.outcome(message, 0, 1, Next::Delivered))
            .collect();
        world.store.record(&ended).await.unwrap();
    }
    let all = i64::try_from(BATCHES * MESSAGES).unwrap();
    // What connections counted is there at their end.
    world.store.close().await;
    wait_for("the statistics", Duration::from_secs(30), async || {
        let moved = world
            .number(
                "SELECT sum(n_tup_upd)::bigint FROM pg_stat_user_tables WHERE relname LIKE 'deliveries_%'",
            )
            .await;
        Ok(if moved == all {
            Poll::Ready(())
        } else {
            Poll::NotYet(format!("{moved} of {all} deliveries moved"))
        })
    })
    .await
    .unwrap();
    // Each delivery is looked for twice: to know it and to move it. The whole day for each batch would be 40,000 and more.
    let read = world
        .number(
            "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables \
             WHERE relname LIKE 'deliveries_%'",
        )
        .await;
    assert!(read <= 4 * all, "{read} rows were read to move {all}");
}

#[tokio::test]
async fn every_field_comes_back() {
    let world = World::new().await;
    let plain = world.message(UnixMillis::now());
    let full = Message {
        event_type: "nul\0type".into(),
        event_id: Some("order \"7\"".into()),
        channels: vec!["a\"b".into(), "\u{e9}".into()],
        payload: vec![7; 700_000].into(),
        payload_retention_days: Some(3),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        ..(*world.message(UnixMillis::now())).clone()
    };
    let full = std::sync::Arc::new(full);
    let batch = [
        world.accepted(&plain, Disposition::Queued),
        world.accepted(&full, Disposition::Queued),
        world.outcome(&full, 0, 1, Next::Delivered),
    ];
    world.store.record(&batch).await.unwrap();
    for message in [&plain, &full] {
        let found = world.store.message(world.app, message.id, true).await.unwrap();
        let wanted = Message {
            event_type: message.event_type.replace('\0', "\u{fffd}"),
            ..(**message).clone()
        };
        assert_eq!(found.unwrap().message, wanted);
    }
    assert_eq!(
        world
            .number(
                "SELECT expires_at - 3 * 86400000 - accepted_at FROM bodies_kept JOIN messages USING (id)"
            )
            .await,
        0
    );
}

#[tokio::test]
async fn a_late_attempt_leaves_a_cancelled_delivery_its_reason() {
    let world = World::new().await;
    let message = world.message(UnixMillis::now());
    let cancelled = Next::Cancelled(CancelReason::EndpointDisabled);
    let batch = [
        world.accepted(&message, Disposition::Queued),
        world.outcome(&message, 0, 0, cancelled),
    ];
    world.store.record(&batch).await.unwrap();
    let late = Next::Retry {
        delay: Duration::from_secs(5),
    };
    let late = [world.outcome(&message, 0, 2, late)];
    world.store.record(&late).await.unwrap();
    let kept = world.number("SELECT count(*) FROM deliveries WHERE attempts = 2 AND cancelled IS NOT NULL");
    assert_eq!(kept.await, 1);
}

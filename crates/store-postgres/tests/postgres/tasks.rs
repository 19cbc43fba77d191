//! Background tasks, shared leases and the counts of what waits.

use std::sync::Arc;
use std::time::Duration;

use postrider_model::{
    DeferReason, DeliveryId, DeliveryState, Disposition, Message, Next, TaskId, Trigger, UnixMillis,
};
use postrider_store::{
    ConfigStore, Grant, LogStore, Page, RecordStore, TaskKind, TaskRow, TaskState, UpkeepStore, WaitingStore,
};

use crate::world::{DAY, World};

const GONE: Next = Next::Exhausted { gone: false };

fn task(world: &World, kind: TaskKind) -> TaskRow {
    let now = UnixMillis::now();
    TaskRow {
        id: TaskId::generate(now, &mut rand::rng()),
        kind,
        app: world.app,
        endpoint: world.endpoint,
        since: now.minus(2 * DAY),
        until: now.plus(DAY),
        cursor: None,
        state: TaskState::Running,
        updated_at: now,
    }
}

/// Messages whose deliveries ended with these outcomes, a millisecond apart.
async fn ended(world: &World, outcomes: &[Next]) -> Vec<Arc<Message>> {
    let start = UnixMillis::now().minus(DAY);
    let mut messages = Vec::new();
    let mut batch = Vec::new();
    for (n, next) in outcomes.iter().enumerate() {
        let at = start.plus(Duration::from_millis(u64::try_from(n).unwrap()));
        let message = world.message(at);
        batch.push(world.accepted(&message, Disposition::Queued));
        batch.push(world.outcome(&message, 0, 1, *next));
        messages.push(message);
    }
    world.store.record(&batch).await.unwrap();
    messages
}

#[tokio::test]
async fn recovery_by_two_ledgers_makes_each_delivery_once() {
    let world = World::new().await;
    let outcomes: Vec<Next> = (0..60)
        .map(|n| if n % 3 == 0 { Next::Delivered } else { GONE })
        .collect();
    let messages = ended(&world, &outcomes).await;
    let task = task(&world, TaskKind::Recover);
    world.store.create_task(&task).await.unwrap();
    let other = world.again();
    let mut made = 0;
    loop {
        let (one, two) = tokio::join!(world.store.sweep(7), other.sweep(7));
        let step = one.unwrap().recovered + two.unwrap().recovered;
        made += step;
        let state = world.store.task(task.id).await.unwrap().unwrap().state;
        if state == TaskState::Finished {
            break;
        }
        assert!(made <= 40, "more deliveries than failed");
    }
    assert_eq!(made, 40);
    let page = Page {
        after: None,
        backwards: false,
        descending: false,
        limit: 10,
    };
    let mut rows = world
        .store
        .deliveries_of_message(world.app, messages[1].id, &page)
        .await
        .unwrap();
    rows.sort_by_key(|row| row.trigger as u8);
    assert_eq!(rows.len(), 2);
    assert_eq!(
        (rows[0].state, rows[0].trigger),
        (DeliveryState::Exhausted, Trigger::Scheduled)
    );
    assert_eq!(
        (rows[1].id, rows[1].state, rows[1].trigger),
        (
            DeliveryId::derive_again(messages[1].id, world.endpoint, task.id.as_bytes()),
            DeliveryState::Pending,
            Trigger::Manual
        )
    );
    assert!(matches!(rows[1].waiting, Some((_, DeferReason::Manual))));
    let due = world
        .store
        .claim_due(10, 100, Duration::ZERO, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(due[0].due, 40);
    // A second recovery finds them on their way already.
    let again = self::task(&world, TaskKind::Recover);
    world.store.create_task(&again).await.unwrap();
    assert_eq!(world.store.sweep(100).await.unwrap().recovered, 0);
    assert_eq!(
        world.store.task(again.id).await.unwrap().unwrap().state,
        TaskState::Finished
    );
}

#[tokio::test]
async fn replay_delivers_what_never_arrived() {
    let world = World::new().await;
    ended(&world, &[Next::Delivered, GONE]).await;
    // A message of the time before the endpoint: it has no delivery at all.
    let early = world.message(UnixMillis::now().minus(DAY));
    let mut alone = world.accepted(&early, Disposition::Queued);
    if let postrider_model::Record::Accepted(accepted) = &mut alone {
        accepted.deliveries.clear();
    }
    world.store.record(&[alone]).await.unwrap();
    let task = task(&world, TaskKind::Replay);
    world.store.create_task(&task).await.unwrap();
    assert_eq!(world.store.sweep(100).await.unwrap().recovered, 2);
    let grant = Grant {
        endpoint: world.endpoint,
        count: 10,
        probe: false,
        has_token: true,
        ordered: false,
        not_before: Duration::ZERO,
        is_full: false,
    };
    let jobs = world.store.lease(&[grant], DAY, Duration::ZERO).await.unwrap();
    assert_eq!(jobs.len(), 2);
    assert!(jobs.iter().all(|leased| leased.job.has_token
        && leased.job.trigger == Trigger::Manual
        && leased.job.message.payload == early.payload));
}

#[tokio::test]
async fn a_task_whose_endpoint_is_gone_fails() {
    let world = World::new().await;
    let mut lost = task(&world, TaskKind::Recover);
    lost.endpoint = postrider_model::EndpointId::generate(UnixMillis::now(), &mut rand::rng());
    world.store.create_task(&lost).await.unwrap();
    world.store.sweep(10).await.unwrap();
    assert_eq!(
        world.store.task(lost.id).await.unwrap().unwrap().state,
        TaskState::Failed
    );
}

#[tokio::test]
async fn counts_of_many_rows_are_estimated() {
    let world = World::new().await;
    world
        .number(
            "WITH new AS (INSERT INTO waiting (delivery, endpoint, app, message, due_at, seq, run, attempts, reason, \
             trigger, leased) SELECT gen_random_uuid(), e.id, e.app, gen_random_uuid(), 0, 0, 0, 0, \
             CASE WHEN n % 4 = 0 THEN 1 ELSE 4 END, 0, false FROM endpoints e, generate_series(1, 160000) n \
             RETURNING 1) SELECT count(*) FROM new",
        )
        .await;
    let few = world.store.waiting_counts().await.unwrap().0;
    assert_eq!(few.len(), 2);
    assert_eq!(
        (few[0].reason, few[1].reason),
        (DeferReason::Retry, DeferReason::Paused)
    );
    let total = few[0].count + few[1].count;
    // Before the table was ever analysed the estimate is a lower bound.
    assert!((90_000..=250_000).contains(&total), "{few:?}");
    assert!(
        few[1].count > 2 * few[0].count && few[1].count < 4 * few[0].count,
        "{few:?}"
    );
}

#[tokio::test]
async fn a_task_needs_nothing_that_is_sealed() {
    let world = World::new().await;
    ended(&world, &[GONE]).await;
    let broken = world.number("UPDATE endpoints SET secrets = '\\x00' RETURNING 1::bigint");
    assert_eq!(broken.await, 1);
    let task = task(&world, TaskKind::Recover);
    world.store.create_task(&task).await.unwrap();
    assert_eq!(world.store.sweep(100).await.unwrap().recovered, 1);
}

#[tokio::test]
async fn a_task_that_fails_or_is_of_an_unknown_kind_does_not_stand_before_the_others() {
    let world = World::new().await;
    let now = UnixMillis::now();
    let old = world.message(now.minus(3 * DAY));
    world
        .store
        .record(&[world.accepted(&old, Disposition::Queued)])
        .await
        .unwrap();
    ended(&world, &[GONE]).await;
    let fails = TaskRow {
        since: now.minus(4 * DAY),
        until: now.minus(2 * DAY),
        ..task(&world, TaskKind::Replay)
    };
    let works = task(&world, TaskKind::Recover);
    for task in [&fails, &works] {
        world.store.create_task(task).await.unwrap();
    }
    let pool = sqlx::PgPool::connect(world.database.url()).await.unwrap();
    // The oldest day of deliveries is gone before that of the messages, and a newer process knows more kinds of tasks.
    sqlx::raw_sql(
        "DO $$ BEGIN EXECUTE (SELECT 'ALTER TABLE deliveries DETACH PARTITION ' || min(inhrelid::regclass::text) \
         FROM pg_inherits WHERE inhparent = 'deliveries'::regclass); END $$; \
         UPDATE tasks SET updated_at = 1 WHERE kind = 2; \
         INSERT INTO tasks (id, kind, app, endpoint, since, until, state, updated_at) \
         SELECT gen_random_uuid(), 9, app, endpoint, 0, 1, 0, 0 FROM tasks LIMIT 1",
    )
    .execute(&pool)
    .await
    .unwrap();
    let (mut failures, mut made) = (0, 0);
    for _ in 0..3 {
        match world.store.sweep(10).await {
            Ok(report) => made += report.recovered,
            Err(_) => failures += 1,
        }
    }
    assert!(failures > 0, "the first one was to fail");
    assert_eq!(made, 1);
}

#[tokio::test]
async fn what_a_sweep_cancelled_is_told_though_a_task_fails() {
    let mut world = World::new().await;
    ended(&world, &[GONE]).await;
    world
        .store
        .create_task(&task(&world, TaskKind::Recover))
        .await
        .unwrap();
    let mut off = crate::world::endpoint(world.app);
    world.store.create_endpoint(&off).await.unwrap().unwrap();
    world.endpoint = off.id;
    let message = world.message(UnixMillis::now());
    let waits = world.accepted(&message, Disposition::Waiting(DeferReason::Backlog));
    world.store.record(&[waits]).await.unwrap();
    off.disabled = true;
    let was = off.updated_at;
    world.store.update_endpoint(&off, was).await.unwrap().unwrap();
    let pool = sqlx::PgPool::connect(world.database.url()).await.unwrap();
    sqlx::raw_sql("ALTER TABLE bodies_kept RENAME TO away")
        .execute(&pool)
        .await
        .unwrap();
    let report = world.store.sweep(10).await.unwrap();
    assert_eq!((report.cancelled, report.recovered), (1, 0));
    while world.store.sweep(10).await.is_ok_and(|report| report.passed > 0) {}
    let failed = world.store.sweep(10).await;
    assert!(failed.is_err(), "alone it is an error: {failed:?}");
}

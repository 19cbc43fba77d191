//! Checks of sweeps, tasks and what else `UpkeepStore` does.

use bytes::Bytes;
use postrider_model::{
    DeferReason, DeliveryState, Disposition, EndpointId, Next, TaskId, Trigger, UnixMillis,
};

use super::fixture::{FAILED, HOUR, SECOND, WAITING, World, must};
use crate::{EndpointRef, SharedStore, SweepReport, TaskKind, TaskRow, TaskState};

/// Sweeps until there is nothing left to do; the sum, and the most that one sweep cancelled.
async fn sweep_all(world: &World, limit: u32) -> (SweepReport, u64) {
    let mut sum = SweepReport::default();
    let mut most = 0;
    for _ in 0..1_000 {
        let report = must(world.store.sweep(limit).await);
        if report.cancelled + report.recovered == 0 {
            return (sum, most);
        }
        sum.cancelled += report.cancelled;
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

fn task(
    world: &World,
    kind: TaskKind,
    endpoint: EndpointId,
    since: UnixMillis,
    until: UnixMillis,
) -> TaskRow {
    TaskRow {
        id: world.id(TaskId::generate),
        kind,
        app: world.app,
        endpoint,
        since,
        until,
        cursor: None,
        state: TaskState::Running,
        updated_at: UnixMillis::now(),
    }
}

/// Runs a task in chunks of `limit` to its end.
async fn run_task(world: &World, task: &TaskRow, limit: u32) -> (u64, TaskState) {
    must(world.store.create_task(task).await);
    let mut made = 0;
    for _ in 0..1_000 {
        made += must(world.store.sweep(limit).await).recovered;
        let found = must(world.store.task(task.id).await).expect("the task is there");
        if found.state != TaskState::Running {
            assert!(made == 0 || found.cursor.is_some());
            return (made, found.state);
        }
    }
    panic!("the task never ends");
}

/// However many tasks run, the newest one has its turn, and each application's are counted.
pub async fn every_task_has_its_turn(store: SharedStore) {
    let world = World::new(store).await;
    let endpoints = [world.endpoint(|_| {}).await.id, world.endpoint(|_| {}).await.id];
    let mut batch = Vec::new();
    for n in 0..60_u32 {
        let endpoint = endpoints[usize::from(n == 0)];
        let message = world.message_aged(HOUR + n * SECOND, |_| {});
        batch.push(world.accepted(&message, &[endpoint], Disposition::Queued));
        batch.push(world.ended(&message, endpoint, 0, FAILED));
    }
    world.record(&batch).await;
    let now = UnixMillis::now();
    let recovery = |endpoint| task(&world, TaskKind::Recover, endpoint, now.minus(2 * HOUR), now);
    for _ in 0..6 {
        must(world.store.create_task(&recovery(endpoints[0])).await);
    }
    let newest = recovery(endpoints[1]);
    must(world.store.create_task(&newest).await);
    assert_eq!(must(world.store.running_tasks(world.app, 100).await), 7);
    assert_eq!(
        must(world.store.running_tasks(world.app, 3).await),
        3,
        "no further"
    );
    let other = world.id(postrider_model::AppId::generate);
    assert_eq!(must(world.store.running_tasks(other, 100).await), 0);
    for _ in 0..20 {
        must(world.store.sweep(1).await);
    }
    let found = must(world.store.task(newest.id).await).expect("the task is there");
    assert_eq!(found.state, TaskState::Finished);
}

/// Recovery makes manual deliveries of what was exhausted in its time, and only of that, and only once.
pub async fn a_recovery_delivers_again_what_failed(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let before = world.message_aged(3 * HOUR, |_| {});
    let mut batch = vec![
        world.accepted(&before, &[endpoint], Disposition::Queued),
        world.ended(&before, endpoint, 0, FAILED),
    ];
    let mut failed = Vec::new();
    for n in 0..30_u32 {
        let message = world.message_aged(HOUR + n * SECOND, |_| {});
        batch.push(world.accepted(&message, &[endpoint], Disposition::Queued));
        match n % 3 {
            0 => batch.push(world.ended(&message, endpoint, 0, Next::Delivered)),
            1 => {
                batch.push(world.ended(&message, endpoint, 0, FAILED));
                failed.push(message);
            }
            _ => {}
        }
    }
    world.record(&batch).await;
    let now = UnixMillis::now();
    let task = task(&world, TaskKind::Recover, endpoint, now.minus(2 * HOUR), now);
    assert_eq!(run_task(&world, &task, 7).await, (10, TaskState::Finished));
    let mut jobs = world.take(endpoint, 100).await;
    assert!(
        jobs.iter()
            .all(|job| job.trigger == Trigger::Manual && job.run == 1)
    );
    let mut again: Vec<_> = jobs.iter().map(|job| job.message.id).collect();
    again.sort_unstable();
    failed.sort_by_key(|message| message.id);
    assert_eq!(again, failed.iter().map(|message| message.id).collect::<Vec<_>>());

    let job = jobs.remove(0);
    let mut outcome = world.outcome(&job.message, endpoint, job.run, Next::Delivered);
    outcome.delivery = job.delivery;
    outcome.trigger = Trigger::Manual;
    world
        .record(&[postrider_model::Record::Outcome(Box::new(outcome))])
        .await;
    let rows = world.deliveries(&job.message).await;
    let mut states: Vec<_> = rows.iter().map(|row| (row.trigger, row.state)).collect();
    states.sort_unstable_by_key(|(trigger, _)| *trigger as u8);
    let expected = [
        (Trigger::Scheduled, DeliveryState::Exhausted),
        (Trigger::Manual, DeliveryState::Delivered),
    ];
    assert_eq!(states, expected);
    let second = TaskRow {
        id: world.id(TaskId::generate),
        ..task
    };
    let (made, _) = run_task(&world, &second, 100).await;
    assert_eq!(made, 0, "delivered or on its way");
}

/// Replay makes deliveries of messages that the endpoint subscribes to and never got.
pub async fn a_replay_delivers_what_never_came(store: SharedStore) {
    let world = World::new(store).await;
    let early = world.endpoint(|_| {}).await.id;
    let mut missed = Vec::new();
    let mut batch = Vec::new();
    for n in 0..12 {
        let message = world.message_aged(HOUR, |message| {
            if n % 4 == 3 {
                message.event_type = "user.created".into();
            }
        });
        batch.push(world.accepted(&message, &[early], Disposition::Queued));
        if n % 4 != 3 {
            missed.push(message);
        }
    }
    world.record(&batch).await;
    let late = world
        .endpoint(|endpoint| endpoint.event_types = vec!["invoice.paid".into()])
        .await
        .id;
    let got = missed.remove(0);
    world.record(&[world.ended(&got, late, 0, Next::Delivered)]).await;
    let now = UnixMillis::now();
    let task = task(&world, TaskKind::Replay, late, now.minus(2 * HOUR), now);
    assert_eq!(run_task(&world, &task, 5).await, (8, TaskState::Finished));
    let jobs = world.take(late, 100).await;
    assert_eq!(jobs.len(), missed.len());
    assert!(
        jobs.iter()
            .all(|job| missed.iter().any(|message| message.id == job.message.id))
    );
    assert_eq!(world.counts(late).await.pending, 8);
}

/// Nothing is made for an endpoint that is gone.
pub async fn a_task_of_a_deleted_endpoint_fails(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let now = UnixMillis::now();
    let task = task(&world, TaskKind::Recover, endpoint, now.minus(HOUR), now);
    must(world.store.delete_endpoint(world.app, endpoint, now).await);
    assert_eq!(run_task(&world, &task, 10).await, (0, TaskState::Failed));
    let unknown = world.id(TaskId::generate);
    assert!(must(world.store.task(unknown).await).is_none());
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

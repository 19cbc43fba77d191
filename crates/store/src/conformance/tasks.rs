//! Checks of background tasks.

use std::sync::Arc;

use postrider_model::{
    DeliveryState, Disposition, EndpointId, Message, MessageId, Next, Record, TaskId, Trigger, UnixMillis,
};

use super::fixture::{FAILED, HOUR, SECOND, World, must};
use crate::{SharedStore, TaskKind, TaskRow, TaskState};

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
    world.record(&[Record::Outcome(Box::new(outcome))]).await;
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

/// What has no payload any more cannot be delivered, so nothing is made of it.
pub async fn a_task_passes_over_what_has_no_payload(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let kept = |message: &mut Message| message.payload_retention_days = Some(60);
    let messages = [
        world.message_aged(HOUR, |_| {}),
        world.message_aged(HOUR, kept),
        world.message_aged(HOUR, |_| {}),
        world.message_aged(HOUR, kept),
    ];
    let mut batch = Vec::new();
    for message in &messages {
        batch.push(world.accepted(message, &[endpoint], Disposition::Queued));
        batch.push(world.ended(message, endpoint, 0, FAILED));
    }
    world.record(&batch).await;
    for message in &messages[..2] {
        assert!(must(world.store.expunge_payload(world.app, message.id).await));
    }
    let now = UnixMillis::now();
    let recover = task(&world, TaskKind::Recover, endpoint, now.minus(2 * HOUR), now);
    assert_eq!(run_task(&world, &recover, 10).await, (2, TaskState::Finished));
    let other = world.endpoint(|_| {}).await.id;
    let replay = task(&world, TaskKind::Replay, other, now.minus(2 * HOUR), now);
    assert_eq!(run_task(&world, &replay, 10).await, (2, TaskState::Finished));
    let jobs = world.take_all().await;
    let with_payload = |id| messages[2..].iter().any(|message| message.id == id);
    assert!(jobs.len() == 4 && jobs.iter().all(|job| with_payload(job.message.id)));
}

/// What an `ordered` endpoint gets again comes in the order of the messages, those of one millisecond too.
pub async fn a_recovery_keeps_the_order(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|endpoint| endpoint.ordered = true).await.id;
    let at = UnixMillis::now().minus(HOUR);
    let mut failed = Vec::new();
    let mut batch = Vec::new();
    for _ in 0..12 {
        let mut message = (*world.message_aged(HOUR, |_| {})).clone();
        message.id = MessageId::generate(at, &mut rand::rng());
        message.accepted_at = at;
        let message = Arc::new(message);
        batch.push(world.accepted(&message, &[endpoint], Disposition::Queued));
        batch.push(world.ended(&message, endpoint, 0, FAILED));
        failed.push(message.id);
    }
    world.record(&batch).await;
    failed.sort_unstable();
    let now = UnixMillis::now();
    let task = task(&world, TaskKind::Recover, endpoint, now.minus(2 * HOUR), now);
    assert_eq!(run_task(&world, &task, 100).await, (12, TaskState::Finished));
    let jobs = world.take(endpoint, 100).await;
    let again: Vec<MessageId> = jobs.iter().map(|job| job.message.id).collect();
    assert_eq!(again, failed);
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

//! Checks of retention.

use std::time::Duration;

use postrider_model::{AppId, Claim, DeliveryState, Disposition, KeyId, Next, UnixMillis};

use super::fixture::{DAY, RETRY, WAITING, World, first, must};
use crate::{AttemptFilter, MessageFilter, NewKey, ResealCursor, RetentionReport, SharedStore};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Chunks until nothing is left to remove.
async fn retain_all(world: &World, payloads: Duration, log: Duration) -> RetentionReport {
    let mut sum = RetentionReport::default();
    for _ in 0..1_000 {
        let report = must(world.store.retain(payloads, log, 4).await);
        if report == RetentionReport::default() {
            return sum;
        }
        sum.payloads += report.payloads;
        sum.messages += report.messages;
        sum.cancelled += report.cancelled;
        sum.rows += report.rows;
    }
    panic!("retention never ends: {sum:?}");
}

/// A payload that goes takes what waits for it along, on record; the record stays.
pub async fn payloads_expire_on_record(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let mut messages = Vec::new();
    for n in 0..10 {
        let message = world.message_aged(3 * DAY, |_| {});
        let next = if n % 2 == 0 { Next::Delivered } else { RETRY };
        world
            .record(&[
                world.accepted(&message, &[endpoint], WAITING),
                world.ended(&message, endpoint, 0, next),
            ])
            .await;
        messages.push(message);
    }
    let report = retain_all(&world, 2 * DAY, YEAR).await;
    // A store may count days' partitions instead of payloads.
    assert!(report.payloads > 0, "{report:?}");
    assert_eq!(report.cancelled, 5);
    for (n, message) in messages.iter().enumerate() {
        let row = must(world.store.message(world.app, message.id, true).await).expect("the record stays");
        assert!(row.payload_gone && row.message.payload.is_empty());
        assert!(must(world.store.payload(message.id).await).is_none());
        let delivery = world.delivery(message).await;
        let expected = if n % 2 == 0 {
            DeliveryState::Delivered
        } else {
            DeliveryState::Cancelled
        };
        assert_eq!((delivery.state, delivery.waiting), (expected, None));
    }
    let counts = world.counts(endpoint).await;
    assert_eq!((counts.success, counts.canceled, counts.sending), (5, 5, 0));
    assert!(world.take_all().await.is_empty());
}

/// A message's own retention may be shorter or longer than the default.
pub async fn a_message_may_have_a_retention_of_its_own(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let aged = |days: u32, own: Option<u16>| {
        world.message_aged(days * DAY, |message| message.payload_retention_days = own)
    };
    let messages = [aged(3, Some(1)), aged(3, Some(5)), aged(3, None), aged(1, None)];
    let batch: Vec<_> = messages
        .iter()
        .map(|message| world.accepted(message, &[endpoint], Disposition::Queued))
        .collect();
    world.record(&batch).await;
    assert!(retain_all(&world, 2 * DAY, YEAR).await.payloads > 0);
    let mut gone = Vec::new();
    for message in &messages {
        gone.push(must(world.store.payload(message.id).await).is_none());
    }
    assert_eq!(gone, [true, false, true, false]);
    // A store may keep payloads to the end of their day, so a shorter time than a day would depend on the hour.
    retain_all(&world, Duration::ZERO, YEAR).await;
    assert!(must(world.store.payload(messages[1].id).await).is_some());
    assert!(must(world.store.payload(messages[3].id).await).is_none());
}

/// However many have a retention of their own, what came after them goes, without a rest in between.
pub async fn many_with_a_retention_of_their_own_hold_up_nobody(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let long = |message: &mut postrider_model::Message| message.payload_retention_days = Some(90);
    let mut messages: Vec<_> = (0..9).map(|_| world.message_aged(3 * DAY, long)).collect();
    messages.push(world.message_aged(3 * DAY, |_| {}));
    for message in &messages {
        world
            .record(&[world.accepted(message, &[endpoint], Disposition::Queued)])
            .await;
    }
    assert!(retain_all(&world, 2 * DAY, YEAR).await.payloads > 0);
    for (n, message) in messages.iter().enumerate() {
        let payload = must(world.store.payload(message.id).await);
        assert_eq!(payload.is_some(), n < 9, "{n}");
    }
}

/// What is young is left alone, however often retention looks.
pub async fn a_young_payload_stays(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let messages = world.accept_many(endpoint, 20, WAITING).await;
    assert_eq!(
        retain_all(&world, 2 * DAY, 3 * DAY).await,
        RetentionReport::default()
    );
    assert!(must(world.store.payload(messages[0].id).await).is_some());
    assert_eq!(world.take(endpoint, 100).await.len(), 20);
}

/// What is only there for a time goes too, and is told, so that chunk follows chunk.
pub async fn claims_that_ended_go(store: SharedStore) {
    let world = World::new(store).await;
    for n in 0..9 {
        let ended = Claim {
            key: [n; 32],
            resource: [n; 16],
            fingerprint: [n; 32],
            expires_at: UnixMillis::now().minus(DAY),
        };
        must(world.store.keep_claim(&ended).await);
    }
    assert_eq!(retain_all(&world, YEAR, YEAR).await.rows, 9);
}

/// Old records go with everything that hangs on them.
pub async fn old_records_go(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let mut old = Vec::new();
    for _ in 0..9 {
        let message = world.message_aged(10 * DAY, |_| {});
        let mut outcome = world.outcome(&message, endpoint, 0, RETRY);
        if let Some(attempt) = &mut outcome.attempt {
            let at = message.id.created_at();
            attempt.id = world.id(|_, rng| postrider_model::AttemptId::generate(at, rng));
        }
        world
            .record(&[
                world.accepted(&message, &[endpoint], WAITING),
                postrider_model::Record::Outcome(Box::new(outcome)),
            ])
            .await;
        old.push(message);
    }
    let young = world.accept_many(endpoint, 3, WAITING).await;
    retain_all(&world, 4 * DAY, 5 * DAY).await;
    for message in &old {
        assert!(must(world.store.message(world.app, message.id, false).await).is_none());
        assert!(world.deliveries(message).await.is_empty());
    }
    let rows = must(
        world
            .store
            .messages(world.app, &MessageFilter::default(), &first(100))
            .await,
    );
    assert_eq!(rows.rows.len(), young.len());
    let filter = AttemptFilter {
        endpoint: Some(endpoint),
        ..AttemptFilter::default()
    };
    assert!(
        must(world.store.attempts(world.app, &filter, &first(100)).await)
            .rows
            .is_empty()
    );
    assert_eq!(world.take(endpoint, 100).await.len(), 3);
}

/// What was deleted or revoked goes once nothing on record can refer to it, its sealed secrets with it. What comes for it all
/// the same is cancelled.
pub async fn what_was_deleted_goes_after_its_record(store: SharedStore) {
    let world = World::new(store).await;
    let now = UnixMillis::now();
    let long_ago = now.minus(10 * DAY);
    let app = world.id(AppId::generate);
    must(world.store.create_app(&world.application(app)).await);
    must(world.store.delete_app(app, long_ago).await);
    let mut endpoints = Vec::new();
    for deleted_at in [Some(long_ago), Some(now), None] {
        let endpoint = world.endpoint(|_| {}).await.id;
        if let Some(at) = deleted_at {
            must(world.store.delete_endpoint(world.app, endpoint, at).await);
        }
        endpoints.push(endpoint);
    }
    let mut keys = Vec::new();
    for (hash, revoked_at) in [(1, long_ago), (2, now)] {
        let key = NewKey {
            id: world.id(KeyId::generate),
            hash: [hash; 32],
            scope: "ingest".into(),
            name: "producer".into(),
            created_at: long_ago,
        };
        must(world.store.create_key(&key).await);
        assert!(must(world.store.revoke_key(key.id, revoked_at).await));
        keys.push(key.id);
    }
    must(world.store.sweep(100).await);
    assert_eq!(
        must(world.store.reseal(ResealCursor::default(), 100).await).seen,
        3
    );

    let gone = retain_all(&world, 4 * DAY, 5 * DAY).await;
    assert_eq!(gone.rows, 3, "an application, an endpoint and a key");
    assert_eq!(
        must(world.store.reseal(ResealCursor::default(), 100).await).seen,
        2
    );
    let left: Vec<KeyId> = must(world.store.keys(&first(10)).await)
        .iter()
        .map(|stored| stored.key.id)
        .collect();
    assert_eq!(left, keys[1..]);

    let late = world.accept_many(endpoints[0], 1, WAITING).await;
    world.claim().await;
    assert_eq!(must(world.store.sweep(100).await).cancelled, 1);
    assert_eq!(world.state(&late[0]).await, DeliveryState::Cancelled);
}

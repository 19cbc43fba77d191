//! The statements behind lists, configuration and leases: each filter, order and unique name once.

use std::sync::Arc;
use std::time::Duration;

use postrider_model::{
    Attempt, Claim, DeferReason, DeliveryId, Disposition, EventType, EventTypeId, ExhaustedPolicy, KeyId,
    Message, Next, Record, RetrySchedule, UnixMillis,
};
use postrider_store::{
    AppRef, AttemptFilter, ConfigStore, DeliveryFilter, EndpointRef, Grant, LogStore, MessageFilter, NewKey,
    Page, RecordStore, StoreError, TimeRange, UpkeepStore, WaitingStore,
};

use crate::world::{DAY, World, endpoint};

fn page<C>(after: Option<C>, backwards: bool, descending: bool, limit: u32) -> Page<C> {
    Page {
        after,
        backwards,
        descending,
        limit,
    }
}

/// Ten messages a second apart, every other one with a channel and a type of its own, all delivered at once.
async fn ten(world: &World) -> Vec<Arc<Message>> {
    let start = UnixMillis::now().minus(Duration::from_secs(60));
    let mut messages = Vec::new();
    let mut batch = Vec::new();
    for n in 0..10 {
        let mut message = (*world.message(start.plus(Duration::from_secs(n)))).clone();
        if n % 2 == 1 {
            message.channels = vec!["eu".into(), "b2b".into()];
            message.event_type = "odd".into();
        }
        let message = Arc::new(message);
        batch.push(world.accepted(&message, Disposition::Queued));
        let next = if n < 4 {
            Next::Retry { delay: DAY }
        } else {
            Next::Delivered
        };
        batch.push(world.outcome(&message, 0, 1, next));
        messages.push(message);
    }
    world.store.record(&batch).await.unwrap();
    messages
}

#[tokio::test]
async fn messages_page_both_ways_and_filter() {
    let world = World::new().await;
    let all = ten(&world).await;
    let ids = async |filter: &MessageFilter, page: &Page<_>| -> Vec<usize> {
        let rows = world.store.messages(world.app, filter, page).await.unwrap();
        rows.iter()
            .map(|row| {
                all.iter()
                    .position(|message| message.id == row.message.id)
                    .unwrap()
            })
            .collect()
    };
    let any = MessageFilter::default();
    assert_eq!(ids(&any, &page(None, false, true, 3)).await, [9, 8, 7, 6]);
    assert_eq!(
        ids(&any, &page(Some(all[7].id), false, true, 3)).await,
        [6, 5, 4, 3]
    );
    assert_eq!(
        ids(&any, &page(Some(all[3].id), true, true, 3)).await,
        [7, 6, 5, 4]
    );
    assert_eq!(ids(&any, &page(Some(all[8].id), true, true, 3)).await, [9]);
    assert_eq!(ids(&any, &page(Some(all[7].id), false, false, 3)).await, [8, 9]);
    let odd = MessageFilter {
        event_types: vec!["odd".into()],
        channel: Some("b2b".into()),
        range: TimeRange {
            after: Some(all[1].id.created_at()),
            before: Some(all[7].id.created_at()),
        },
        with_payload: true,
    };
    assert_eq!(ids(&odd, &page(None, false, true, 10)).await, [5, 3]);
    let row = world
        .store
        .message(world.app, all[1].id, true)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&row.message, all[1].as_ref());
}

#[tokio::test]
async fn deliveries_and_attempts_filter() {
    let world = World::new().await;
    let all = ten(&world).await;
    let filter = DeliveryFilter {
        states: vec![postrider_model::DeliveryState::Retrying],
        event_types: vec!["odd".into()],
        channel: Some("eu".into()),
        range: TimeRange::default(),
    };
    let rows = world
        .store
        .deliveries_of_endpoint(
            world.app,
            world.endpoint,
            &filter,
            &page(None, false, true, 10),
            true,
        )
        .await
        .unwrap();
    let found: Vec<_> = rows.iter().map(|(delivery, _)| delivery.message).collect();
    assert_eq!(found, [all[3].id, all[1].id]);
    assert!(rows.iter().all(|(delivery, message)| delivery.waiting.is_some()
        && delivery.attempts == 1
        && message.message.payload == all[0].payload));

    let count = async |filter: AttemptFilter| -> usize {
        let rows = world
            .store
            .attempts(world.app, &filter, &page(None, false, true, 50))
            .await;
        rows.unwrap().len()
    };
    let of_endpoint = || AttemptFilter {
        endpoint: Some(world.endpoint),
        ..AttemptFilter::default()
    };
    assert_eq!(count(of_endpoint()).await, 10);
    assert_eq!(
        count(AttemptFilter {
            success: Some(true),
            ..of_endpoint()
        })
        .await,
        6
    );
    assert_eq!(
        count(AttemptFilter {
            status_class: Some(5),
            ..of_endpoint()
        })
        .await,
        4
    );
    assert_eq!(
        count(AttemptFilter {
            status_class: Some(0),
            ..of_endpoint()
        })
        .await,
        0
    );
    assert_eq!(
        count(AttemptFilter {
            channel: Some("eu".into()),
            ..of_endpoint()
        })
        .await,
        5
    );
    assert_eq!(
        count(AttemptFilter {
            message: Some(all[0].id),
            ..of_endpoint()
        })
        .await,
        1
    );
    let rows = world
        .store
        .attempts(
            world.app,
            &AttemptFilter {
                message: Some(all[5].id),
                ..AttemptFilter::default()
            },
            &page(None, false, true, 5),
        )
        .await
        .unwrap();
    let Attempt { id, response, .. } = rows[0].attempt.clone();
    assert_eq!(response.as_ref(), b"\0\xff");
    assert!(
        world
            .store
            .expunge_attempt(world.app, all[5].id, id)
            .await
            .unwrap()
    );
    let expunged = world
        .store
        .attempt(world.app, all[5].id, id)
        .await
        .unwrap()
        .unwrap();
    assert!(expunged.attempt.response.is_empty());
    assert!(
        world
            .store
            .attempt(world.app, all[4].id, id)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn configuration_round_trips_and_versions_grow() {
    let world = World::new().await;
    let mut full = endpoint(world.app);
    full.uid = Some("main".into());
    full.event_types = vec!["a".into(), "b".into()];
    full.throttle_rate = Some(50);
    full.timeout = Some(Duration::from_secs(9));
    full.retry_schedule = Some(RetrySchedule::try_new(vec![Duration::from_secs(7)]).unwrap());
    full.metadata.insert("k".into(), "v\0".into());
    assert_eq!(world.store.create_endpoint(&full).await.unwrap(), Some(3));
    let mut twin = endpoint(world.app);
    twin.uid = Some("main".into());
    let taken = world.store.create_endpoint(&twin).await;
    assert!(matches!(taken, Err(StoreError::Conflict("uid"))), "{taken:?}");
    let by_uid = world
        .store
        .endpoint(world.app, &EndpointRef::Uid("main".into()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (by_uid.id, by_uid.event_types.len(), by_uid.timeout),
        (full.id, 2, full.timeout)
    );
    assert_eq!(by_uid.retry_schedule, full.retry_schedule);
    assert_eq!(by_uid.metadata["k"], "v\u{fffd}");
    assert_eq!(
        world
            .store
            .delete_endpoint(world.app, full.id, UnixMillis::now())
            .await
            .unwrap(),
        Some(4)
    );
    assert_eq!(world.store.create_endpoint(&twin).await.unwrap(), Some(5));
    let snapshot = world
        .store
        .snapshot(&AppRef::Id(world.app))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((snapshot.version, snapshot.endpoints.len()), (5, 2));
    assert!(snapshot.endpoint(twin.id).is_some());
    let listed = world
        .store
        .endpoints(world.app, &page(None, false, false, 1))
        .await
        .unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(
        world
            .store
            .apps(&page(None, false, true, 10))
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        world
            .store
            .delete_app(world.app, UnixMillis::now())
            .await
            .unwrap(),
        Some(6)
    );
    assert!(
        world
            .store
            .snapshot(&AppRef::Id(world.app))
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn event_types_keys_claims_and_parked_rows() {
    let world = World::new().await;
    let now = UnixMillis::now();
    for name in ["b", "a", "B", "c"] {
        let event_type = EventType {
            id: EventTypeId::generate(now, &mut rand::rng()),
            name: name.into(),
            description: String::new(),
            archived: false,
            deprecated: false,
            feature_flag: None,
            schemas: Some("{\"1\": {}}".into()),
            created_at: now,
            updated_at: now,
        };
        world.store.create_event_type(&event_type).await.unwrap();
        let again = world.store.create_event_type(&event_type).await;
        assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
        assert!(!world.store.put_event_type(&event_type).await.unwrap());
    }
    world.store.delete_event_type("c", false, now).await.unwrap();
    let names = async |page: Page<String>, all| -> Vec<String> {
        let types = world.store.event_types(&page, all).await.unwrap();
        types.into_iter().map(|event_type| event_type.name).collect()
    };
    assert_eq!(names(page(None, false, false, 10), false).await, ["B", "a", "b"]);
    assert_eq!(
        names(page(None, false, true, 10), true).await,
        ["c", "b", "a", "B"]
    );
    assert_eq!(
        names(page(Some("b".into()), true, false, 1), true).await,
        ["B", "a"]
    );
    assert_eq!(
        names(page(Some("B".into()), false, false, 1), true).await,
        ["a", "b"]
    );

    let key = NewKey {
        id: KeyId::generate(now, &mut rand::rng()),
        hash: [7; 32],
        scope: "admin".into(),
        name: "first".into(),
        created_at: now,
    };
    world.store.create_key(&key).await.unwrap();
    assert!(world.store.key_by_hash(&[7; 32]).await.unwrap().is_some());
    assert!(world.store.revoke_key(key.id, now).await.unwrap());
    assert!(!world.store.revoke_key(key.id, now).await.unwrap());
    assert!(world.store.key_by_hash(&[7; 32]).await.unwrap().is_none());
    assert_eq!(world.store.keys().await.unwrap().len(), 1);

    let claim = Claim {
        key: [1; 32],
        resource: [2; 16],
        fingerprint: [3; 32],
        expires_at: now.plus(DAY),
    };
    let message = world.message(now);
    let mut record = world.accepted(&message, Disposition::Queued);
    if let Record::Accepted(accepted) = &mut record {
        accepted.claims = vec![
            claim.clone(),
            Claim {
                resource: [9; 16],
                ..claim.clone()
            },
        ];
    }
    world.store.record(&[record]).await.unwrap();
    assert_eq!(
        world.store.claims(&[[0; 32], [1; 32]]).await.unwrap(),
        [None, Some(claim)]
    );

    world
        .store
        .park("record", "bad\0", &b"\0\x01".as_slice().into())
        .await
        .unwrap();
    let parked = world.store.parked(10).await.unwrap();
    assert_eq!(
        (parked[0].reason.as_str(), parked[0].bytes.as_ref()),
        ("bad\u{fffd}", &b"\0\x01"[..])
    );
    assert!(world.store.unpark(parked[0].id).await.unwrap().is_some());
    assert!(world.store.unpark(parked[0].id).await.unwrap().is_none());
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
        endpoint: world.endpoint,
        count: 2,
        probe: true,
        has_token: false,
        ordered: false,
        not_before: Duration::ZERO,
        is_full: false,
    };
    assert!(world.store.lease(&[grant], DAY).await.unwrap().is_empty());
    assert_eq!(world.store.release_all_leases(false).await.unwrap(), 3);
    let jobs = world
        .store
        .lease(&[grant], Duration::from_secs(60))
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
    let due = world.store.claim_due(5, 5, Duration::ZERO).await.unwrap();
    assert_eq!((due[0].due, due[0].out), (3, 0));

    world
        .number("WITH gone AS (DELETE FROM bodies RETURNING 1) SELECT count(*) FROM gone")
        .await;
    let all = Grant { count: 5, ..grant };
    assert!(world.store.lease(&[all], DAY).await.unwrap().is_empty());
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
        endpoint: world.endpoint,
        count: 1,
        probe: false,
        has_token: false,
        ordered: false,
        not_before: Duration::ZERO,
        is_full: false,
    };
    assert_eq!(world.store.claim_due(5, 5, DAY).await.unwrap().len(), 1);
    assert!(world.store.lease(&[grant], DAY).await.unwrap().is_empty());
    world
        .store
        .record(&[world.accepted(&message, Disposition::Queued)])
        .await
        .unwrap();
    assert_eq!(world.store.claim_due(5, 5, DAY).await.unwrap().len(), 1);
    assert_eq!(world.store.lease(&[grant], DAY).await.unwrap().len(), 1);
}

#[tokio::test]
async fn gone_disables_and_an_exhausted_head_pauses() {
    let mut world = World::new().await;
    let message = world.message(UnixMillis::now());
    let gone = [
        world.accepted(&message, Disposition::Queued),
        world.outcome(&message, 0, 1, Next::Exhausted { gone: true }),
    ];
    let report = world.store.record(&gone).await.unwrap();
    assert_eq!(report.disabled, [world.endpoint]);
    assert_eq!(report.reconfigured, [(world.app, 3)]);

    let mut fifo = endpoint(world.app);
    fifo.ordered = true;
    fifo.on_exhausted = ExhaustedPolicy::Pause;
    world.store.create_endpoint(&fifo).await.unwrap();
    world.endpoint = fifo.id;
    let (head, next) = (world.message(UnixMillis::now()), world.message(UnixMillis::now()));
    let batch = [
        world.accepted(&head, Disposition::Ordered),
        world.accepted(&next, Disposition::Ordered),
    ];
    world.store.record(&batch).await.unwrap();
    let report = world
        .store
        .record(&[world.outcome(&head, 0, 1, Next::Exhausted { gone: false })])
        .await
        .unwrap();
    assert_eq!(report.reconfigured, [(world.app, 5)]);
    assert!(report.disabled.is_empty());
    let paused = world
        .store
        .endpoint(world.app, &EndpointRef::Id(fifo.id))
        .await
        .unwrap()
        .unwrap();
    assert!(paused.paused && !paused.disabled);
    assert!(world.store.claim_due(5, 5, DAY).await.unwrap().is_empty());
}

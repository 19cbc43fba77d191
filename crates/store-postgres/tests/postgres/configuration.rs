//! Configuration: it round-trips, its versions grow, unique names stay unique, and what outcomes do to it.

use std::time::Duration;

use postrider_model::{
    AppId, Application, Claim, DeferReason, Disposition, EventType, EventTypeId, ExhaustedPolicy, KeyId,
    Next, Record, RetrySchedule, UnixMillis,
};
use postrider_store::{
    AppRef, ConfigStore, EndpointRef, LogStore, NewKey, Page, RecordStore, StoreError, UpkeepStore,
    WaitingStore,
};

use crate::world::{DAY, World, endpoint, page};

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
    let snapshot = world.snapshot().await;
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
    assert_eq!(
        world
            .store
            .keys(&page(None, false, false, 10))
            .await
            .unwrap()
            .len(),
        1
    );

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
    let parked = world.store.parked(10, None).await.unwrap().rows;
    assert_eq!(
        (parked[0].reason.as_str(), parked[0].bytes.as_ref()),
        ("bad\u{fffd}", &b"\0\x01"[..])
    );
    assert!(world.store.unpark(parked[0].id).await.unwrap().is_some());
    assert!(world.store.unpark(parked[0].id).await.unwrap().is_none());
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
    assert!(
        world
            .store
            .claim_due(5, 5, DAY, Duration::ZERO)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_change_that_takes_long_to_commit_is_told_after_it() {
    let world = World::new().await;
    let other = AppId::generate(UnixMillis::now(), &mut rand::rng());
    let application = Application {
        id: other,
        uid: None,
        ..world.store.app(&AppRef::Id(world.app)).await.unwrap().unwrap()
    };
    world.store.create_app(&application).await.unwrap();
    let version = world.snapshot().await.version;
    let begin = world.store.changed_apps(None, 10).await.unwrap().next;
    let pool = sqlx::PgPool::connect(world.database.url()).await.unwrap();
    let mut slow = pool.begin().await.unwrap();
    let change = "UPDATE applications SET version = version + 1 WHERE id = $1";
    sqlx::query(change)
        .bind(world.app.as_uuid())
        .execute(&mut *slow)
        .await
        .unwrap();
    sqlx::query(change)
        .bind(other.as_uuid())
        .execute(&pool)
        .await
        .unwrap();
    let told = world.store.changed_apps(Some(begin), 10).await.unwrap();
    // What was told before may be told again: transactions of other databases of the server count too.
    assert!(
        !told.apps.contains(&(world.app, version + 1)),
        "it is not committed"
    );
    assert!(told.apps.iter().any(|(app, _)| *app == other));
    slow.commit().await.unwrap();
    let told = world.store.changed_apps(Some(told.next), 10).await.unwrap();
    assert!(
        told.apps.contains(&(world.app, version + 1)),
        "begun before, committed since"
    );
}

/// Neither what waited for it nor what comes late leaves a row behind that says when it is looked at.
#[tokio::test]
async fn a_deleted_endpoint_leaves_no_backlog_row() {
    let world = World::new().await;
    for is_late in [false, true] {
        let message = world.message(UnixMillis::now());
        let waits = world.accepted(&message, Disposition::Waiting(DeferReason::Backlog));
        world.store.record(&[waits]).await.unwrap();
        assert_eq!(world.number("SELECT count(*) FROM backlog").await, 1);
        if !is_late {
            let deleted = world
                .store
                .delete_endpoint(world.app, world.endpoint, UnixMillis::now());
            deleted.await.unwrap();
        }
        assert_eq!(world.store.sweep(10).await.unwrap().cancelled, 1);
        world.store.sweep(10).await.unwrap();
        assert_eq!(world.number("SELECT count(*) FROM backlog").await, 0);
    }
}

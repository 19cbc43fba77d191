//! Checks of `ConfigStore`.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_model::{
    AppId, Application, Claim, Endpoint, EndpointId, EndpointSecret, EventType, EventTypeId, ExhaustedPolicy,
    HeaderNames, KeyId, RetrySchedule, UnixMillis,
};
use secrecy::{ExposeSecret, SecretString};

use super::fixture::{HOUR, World, first, must, until};
use crate::{AppRef, EndpointRef, NewKey, Page, SharedStore, StoreError};

/// What was written is read, by id and by uid, until it is deleted.
pub async fn applications_are_created_changed_and_deleted(store: SharedStore) {
    let world = World::new(store).await;
    let store = &world.store;
    let mut app = world.application(world.id(AppId::generate));
    app.uid = Some("acme".into());
    app.throttle_rate = Some(50);
    app.metadata = BTreeMap::from([("plan".into(), "gold ☃".into())]);
    assert_eq!(must(store.create_app(&app).await), 1);
    let found = must(store.app(&AppRef::Uid("acme".into())).await).expect("found by uid");
    assert_eq!(
        (found.id, found.throttle_rate, &found.metadata),
        (app.id, Some(50), &app.metadata)
    );

    app.name = "renamed".into();
    app.uid = None;
    assert_eq!(must(store.update_app(&app, app.updated_at).await), Some(2));
    assert!(must(store.app(&AppRef::Uid("acme".into())).await).is_none());
    let found = must(store.app(&AppRef::Id(app.id)).await).expect("found by id");
    assert_eq!(found.name, "renamed");

    let now = UnixMillis::now();
    assert_eq!(must(store.delete_app(app.id, now).await), Some(3));
    assert!(must(store.app(&AppRef::Id(app.id)).await).is_none());
    assert_eq!(must(store.delete_app(app.id, now).await), None);
    assert_eq!(must(store.update_app(&app, app.updated_at).await), None);
}

/// A uid is taken once among applications and once in an application; deleting frees it.
pub async fn uids_are_unique_among_the_living(store: SharedStore) {
    let world = World::new(store).await;
    let store = &world.store;
    let mut app = world.application(world.id(AppId::generate));
    app.uid = Some("acme".into());
    must(store.create_app(&app).await);
    let mut other = app.clone();
    other.id = world.id(AppId::generate);
    assert!(matches!(
        store.create_app(&other).await,
        Err(StoreError::Conflict("uid"))
    ));
    let mut mine = must(store.app(&AppRef::Id(world.app)).await).expect("the world's application");
    mine.uid = Some("acme".into());
    assert!(matches!(
        store.update_app(&mine, mine.updated_at).await,
        Err(StoreError::Conflict("uid"))
    ));
    must(store.delete_app(app.id, UnixMillis::now()).await);
    must(store.create_app(&other).await);
    other.uid = None;
    assert!(matches!(
        store.create_app(&other).await,
        Err(StoreError::Conflict("id"))
    ));

    let endpoint = world
        .endpoint(|endpoint| endpoint.uid = Some("billing".into()))
        .await;
    let mut second = world.draft();
    second.uid = Some("billing".into());
    assert!(matches!(
        store.create_endpoint(&second).await,
        Err(StoreError::Conflict("uid"))
    ));
    let mut elsewhere = second.clone();
    elsewhere.app = other.id;
    must(store.create_endpoint(&elsewhere).await);
    must(
        store
            .delete_endpoint(world.app, endpoint.id, UnixMillis::now())
            .await,
    );
    second.id = world.draft().id;
    must(store.create_endpoint(&second).await);
}

/// Versions grow by every change, and a change that was refused does not count.
pub async fn every_change_raises_the_version(store: SharedStore) {
    let world = World::new(store).await;
    let store = &world.store;
    let mut endpoint = world.draft();
    endpoint.uid = Some("one".into());
    assert_eq!(must(store.create_endpoint(&endpoint).await), Some(2));
    endpoint.paused = true;
    let was = endpoint.updated_at;
    assert_eq!(must(store.update_endpoint(&endpoint, was).await), Some(3));
    let mut twin = world.draft();
    twin.uid = Some("one".into());
    assert!(store.create_endpoint(&twin).await.is_err());
    let now = UnixMillis::now();
    assert_eq!(
        must(store.delete_endpoint(world.app, endpoint.id, now).await),
        Some(4)
    );
    assert_eq!(
        must(store.delete_endpoint(world.app, endpoint.id, now).await),
        None
    );
    assert_eq!(must(store.update_endpoint(&endpoint, was).await), None);
    let snapshot = must(store.snapshot(&AppRef::Id(world.app)).await).expect("a snapshot");
    assert_eq!((snapshot.version, snapshot.endpoints.len()), (4, 0));
    let mut lost = world.draft();
    lost.app = world.id(AppId::generate);
    assert_eq!(must(store.create_endpoint(&lost).await), None);
}

/// Applications that changed since an answer are told with their versions; new ones are not.
pub async fn what_changed_since_is_told(store: SharedStore) {
    let world = World::new(store).await;
    let store = &world.store;
    let mut other = world.application(world.id(AppId::generate));
    must(store.create_app(&other).await);
    let begin = must(store.changed_apps(None, 10).await);
    assert_eq!(begin.apps, []);
    let nothing = must(store.changed_apps(Some(begin.next), 10).await);
    assert_eq!((nothing.apps, nothing.next >= begin.next), (Vec::new(), true));

    world.endpoint(|_| {}).await;
    let first = must(store.changed_apps(Some(begin.next), 10).await);
    assert_eq!(first.apps, [(world.app, 2)]);
    assert!(first.next >= begin.next);
    let was = other.updated_at;
    other.updated_at = UnixMillis(was.0 + 1);
    assert_eq!(must(store.update_app(&other, was).await), Some(2));
    must(store.delete_app(world.app, UnixMillis::now()).await);
    // Each is told to whoever asks with what he has, in any order.
    for since in [begin.next, first.next] {
        let mut both = must(store.changed_apps(Some(since), 10).await).apps;
        both.sort_unstable();
        let mut expected = [(world.app, 3), (other.id, 2)];
        expected.sort_unstable();
        assert_eq!(both, expected);
    }
    assert_eq!(must(store.changed_apps(Some(begin.next), 1).await).apps.len(), 1);
    until("what was told is told no more", async || {
        let end = must(store.changed_apps(None, 10).await).next;
        let again = must(store.changed_apps(Some(end), 10).await).apps;
        again.is_empty().then_some(())
    })
    .await;
}

/// A change counts from its commit, however long that takes: none falls between two answers.
pub async fn no_change_falls_between_two_answers(store: SharedStore) {
    const CHANGES: usize = 40;
    let world = World::new(store).await;
    let store = &world.store;
    let mut apps = vec![world.app];
    for _ in 0..3 {
        let app = world.application(world.id(AppId::generate));
        must(store.create_app(&app).await);
        apps.push(app.id);
    }
    let mut since = must(store.changed_apps(None, 100).await).next;
    let writer = async |app| {
        for _ in 0..CHANGES {
            let mut draft = world.draft();
            draft.app = app;
            must(store.create_endpoint(&draft).await);
        }
    };
    let mut versions: BTreeMap<AppId, u64> = BTreeMap::new();
    let reader = async {
        while apps
            .iter()
            .any(|app| versions.get(app) != Some(&(CHANGES as u64 + 1)))
        {
            let changed = must(store.changed_apps(Some(since), 100).await);
            since = changed.next;
            for (app, version) in changed.apps {
                let known = versions.insert(app, version);
                assert!(known.is_none_or(|known| known <= version));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let [one, two, three, four] = [apps[0], apps[1], apps[2], apps[3]].map(writer);
    let all = async { tokio::join!(one, two, three, four, reader) };
    let done = tokio::time::timeout(super::PATIENCE, all).await;
    assert!(done.is_ok(), "the last versions were never told: {versions:?}");
}

/// While endpoints are being made, each snapshot's version is that of its endpoints.
pub async fn a_snapshot_is_of_one_version(store: SharedStore) {
    const ENDPOINTS: usize = 60;
    let world = World::new(store).await;
    let writer = async {
        for _ in 0..ENDPOINTS {
            world.endpoint(|_| {}).await;
        }
    };
    let reader = async {
        loop {
            let snapshot = must(world.store.snapshot(&AppRef::Id(world.app)).await).expect("a snapshot");
            let endpoints = snapshot.endpoints.len();
            assert_eq!(
                snapshot.version,
                u64::try_from(endpoints + 1).unwrap_or(0),
                "each endpoint is one version"
            );
            assert!(snapshot.endpoints.is_sorted_by_key(|endpoint| endpoint.id));
            if endpoints == ENDPOINTS {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(writer, reader);
}

/// Every field comes back, secrets and header values among them.
pub async fn endpoints_round_trip(store: SharedStore) {
    let world = World::new(store).await;
    let expiry = UnixMillis(UnixMillis::now().0 + 60_000);
    let stored = world
        .endpoint(|endpoint| {
            endpoint.uid = Some("billing".into());
            endpoint.description = "für die Buchhaltung".into();
            endpoint.event_types = vec!["invoice.paid".into(), "invoice.void".into()];
            endpoint.channels = vec!["eu".into()];
            endpoint.paused = true;
            endpoint.throttle_rate = Some(9);
            endpoint.ordered = true;
            endpoint.on_exhausted = ExhaustedPolicy::Pause;
            endpoint.header_names = HeaderNames::Svix;
            endpoint.timeout = Some(Duration::from_millis(1_500));
            endpoint.retry_schedule = RetrySchedule::try_new(vec![Duration::from_millis(1_250)]).ok();
            endpoint.headers = BTreeMap::from([("authorization".into(), SecretString::from("Bearer x"))]);
            endpoint.metadata = BTreeMap::from([("k".into(), "v".into())]);
            endpoint.secrets.push(EndpointSecret {
                text: SecretString::from("whsec_b2xk"),
                expires_at: Some(expiry),
            });
        })
        .await;
    let by_uid = EndpointRef::Uid("billing".into());
    for reference in [by_uid, EndpointRef::Id(stored.id)] {
        let found = must(world.store.endpoint(world.app, &reference).await).expect("found");
        assert_eq!(
            format!("{found:?}"),
            format!("{stored:?}"),
            "all that is not secret"
        );
        let secrets: Vec<_> = found
            .secrets
            .iter()
            .map(|secret| (secret.text.expose_secret(), secret.expires_at))
            .collect();
        let text = stored.secrets[0].text.expose_secret();
        assert_eq!(secrets, [(text, None), ("whsec_b2xk", Some(expiry))]);
        assert_eq!(found.headers["authorization"].expose_secret(), "Bearer x");
    }
    let other = world.id(AppId::generate);
    let found = must(world.store.endpoint(other, &EndpointRef::Id(stored.id)).await);
    assert!(found.is_none(), "another application's endpoint is not found");
}

/// Pages forwards and backwards, up and down, with one row more where there are more.
pub async fn lists_page_both_ways(store: SharedStore) {
    let world = World::new(store).await;
    let mut ids = Vec::new();
    for _ in 0..7 {
        ids.push(world.endpoint(|_| {}).await.id);
    }
    ids.sort_unstable();
    let list = async |after: Option<usize>, backwards: bool, descending: bool| {
        let page = Page {
            after: after.map(|index| ids[index]),
            backwards,
            descending,
            limit: 3,
        };
        let rows = must(world.store.endpoints(world.app, &page).await);
        let places: Vec<usize> = rows
            .iter()
            .filter_map(|row| ids.iter().position(|id| *id == row.id))
            .collect();
        places
    };
    assert_eq!(list(None, false, false).await, [0, 1, 2, 3]);
    assert_eq!(list(Some(2), false, false).await, [3, 4, 5, 6]);
    assert_eq!(list(Some(5), false, false).await, [6]);
    assert_eq!(list(Some(6), true, false).await, [2, 3, 4, 5]);
    assert_eq!(list(Some(2), true, false).await, [0, 1]);
    assert_eq!(list(None, false, true).await, [6, 5, 4, 3]);
    assert_eq!(list(Some(4), false, true).await, [3, 2, 1, 0]);
    assert_eq!(list(Some(1), true, true).await, [5, 4, 3, 2]);

    let second = world.application(world.id(AppId::generate));
    must(world.store.create_app(&second).await);
    let apps = must(world.store.apps(&first(10)).await);
    assert_eq!(apps.len(), 2);
    assert!(apps.is_sorted_by_key(|app| app.id));
    must(world.store.delete_app(second.id, UnixMillis::now()).await);
    assert_eq!(must(world.store.apps(&first(10)).await).len(), 1);
}

fn event_type(world: &World, name: &str, now: UnixMillis) -> EventType {
    EventType {
        id: world.id(EventTypeId::generate),
        name: name.into(),
        description: "something happened".into(),
        archived: false,
        deprecated: false,
        feature_flag: Some("beta".into()),
        schemas: Some("{\"1\":{\"type\":\"object\"}}".into()),
        created_at: now,
        updated_at: now,
    }
}

/// Made once, put often, archived and expunged.
pub async fn event_types_live_by_name(store: SharedStore) {
    let world = World::new(store).await;
    let store = &world.store;
    let now = UnixMillis::now();
    let make = |name: &str| event_type(&world, name, now);
    let user = make("user.created");
    must(store.create_event_type(&user).await);
    assert!(matches!(
        store.create_event_type(&make("user.created")).await,
        Err(StoreError::Conflict("name"))
    ));
    let mut again = make("user.created");
    again.description = "a user came".into();
    again.created_at = UnixMillis(1);
    assert!(!must(store.put_event_type(&again).await));
    let found = must(store.event_type("user.created").await).expect("found");
    assert_eq!((found.id, found.created_at), (user.id, now));
    assert_eq!(
        (found.description, found.schemas),
        (again.description, again.schemas)
    );
    assert!(must(store.put_event_type(&make("invoice.paid")).await));

    let names = async |archived_too: bool| {
        let rows = must(store.event_types(&first(10), archived_too).await);
        rows.into_iter()
            .map(|event_type| event_type.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(false).await, ["invoice.paid", "user.created"]);
    assert!(must(store.delete_event_type("invoice.paid", false, now).await));
    assert_eq!(names(false).await, ["user.created"]);
    assert_eq!(names(true).await.len(), 2);
    let after = Page {
        after: Some("invoice.paid".to_owned()),
        ..first(10)
    };
    assert_eq!(must(store.event_types(&after, true).await).len(), 1);
    assert!(must(store.delete_event_type("invoice.paid", true, now).await));
    assert!(!must(store.delete_event_type("invoice.paid", true, now).await));
    assert!(must(store.event_type("invoice.paid").await).is_none());
}

/// A revoked key is listed, and opens nothing.
pub async fn keys_are_found_by_hash_until_revoked(store: SharedStore) {
    let world = World::new(store).await;
    let store = &world.store;
    let key = NewKey {
        id: world.id(KeyId::generate),
        hash: [7; 32],
        scope: "ingest".into(),
        name: "producer".into(),
        created_at: UnixMillis::now(),
    };
    must(store.create_key(&key).await);
    let found = must(store.key_by_hash(&key.hash).await).expect("found");
    assert_eq!(
        (found.key.id, found.key.scope.as_str(), found.revoked_at),
        (key.id, "ingest", None)
    );
    assert!(must(store.key_by_hash(&[8; 32]).await).is_none());
    let now = UnixMillis::now();
    assert!(must(store.revoke_key(key.id, now).await));
    assert!(!must(store.revoke_key(key.id, now).await));
    assert!(must(store.key_by_hash(&key.hash).await).is_none());
    let keys = must(store.keys().await);
    assert_eq!((keys.len(), keys[0].revoked_at), (1, Some(now)));
}

/// The row is as the first of two writers left it, and no version was spent on the second.
pub async fn a_stale_update_changes_nothing(store: SharedStore) {
    let world = World::new(store).await;
    let store = &world.store;
    let mut app = must(store.app(&AppRef::Id(world.app)).await).expect("the world's application");
    let mut endpoint = world.endpoint(|_| {}).await;
    let mut kind = event_type(&world, "a", UnixMillis::now());
    must(store.create_event_type(&kind).await);
    let (app_was, endpoint_was, kind_was) = (app.updated_at, endpoint.updated_at, kind.updated_at);
    app.updated_at = UnixMillis(app_was.0 + 1);
    endpoint.updated_at = UnixMillis(endpoint_was.0 + 1);
    kind.updated_at = UnixMillis(kind_was.0 + 1);
    assert_eq!(must(store.update_app(&app, app_was).await), Some(3));
    assert_eq!(
        must(store.update_endpoint(&endpoint, endpoint_was).await),
        Some(4)
    );
    assert!(must(store.update_event_type(&kind, kind_was).await));

    app.name = "stale".into();
    endpoint.description = "stale".into();
    kind.description = "stale".into();
    let refused = store.update_app(&app, app_was).await;
    assert!(matches!(refused, Err(StoreError::Changed)), "{refused:?}");
    let refused = store.update_endpoint(&endpoint, endpoint_was).await;
    assert!(matches!(refused, Err(StoreError::Changed)), "{refused:?}");
    let refused = store.update_event_type(&kind, kind_was).await;
    assert!(matches!(refused, Err(StoreError::Changed)), "{refused:?}");
    let snapshot = must(store.snapshot(&AppRef::Id(world.app)).await).expect("a snapshot");
    assert_eq!(
        (snapshot.version, snapshot.application.name.as_str()),
        (4, "a tenant")
    );
    assert_eq!(snapshot.endpoints[0].description, "");
    let found = must(store.event_type("a").await).expect("the event type");
    assert_eq!(found.description, "something happened");
    kind.name = "b".into();
    assert!(
        !must(store.update_event_type(&kind, kind_was).await),
        "there is none"
    );
}

/// Writers that read, change one field of their own and write back, again when they were beaten: every change is there.
pub async fn no_concurrent_update_is_lost(store: SharedStore) {
    const WRITERS: usize = 6;
    const CHANGES: usize = 5;
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let writers = (0..WRITERS).map(|writer| {
        let (store, app) = (world.store.clone(), world.app);
        tokio::spawn(async move {
            for change in 0..CHANGES {
                let name = format!("{writer}.{change}");
                change_endpoint(&store, app, endpoint, &name).await;
                change_app(&store, app, &name).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer");
    }
    let snapshot = must(world.store.snapshot(&AppRef::Id(world.app)).await).expect("a snapshot");
    let wanted = WRITERS * CHANGES;
    assert_eq!(
        snapshot.endpoints[0].metadata.len(),
        wanted,
        "changes of the endpoint"
    );
    assert_eq!(
        snapshot.application.metadata.len(),
        wanted,
        "changes of the application"
    );
    let versions = u64::try_from(2 * wanted).unwrap_or(0);
    assert_eq!(snapshot.version, 2 + versions, "each change is one version");
}

async fn change_endpoint(store: &SharedStore, app: AppId, id: EndpointId, name: &str) {
    loop {
        let found = must(store.endpoint(app, &EndpointRef::Id(id)).await);
        let mut endpoint: Endpoint = found.expect("the endpoint is there");
        let was = endpoint.updated_at;
        endpoint.metadata.insert(name.into(), "set".into());
        endpoint.updated_at = UnixMillis(was.0 + 1);
        match store.update_endpoint(&endpoint, was).await {
            Err(StoreError::Changed) => {}
            done => return assert!(must(done).is_some()),
        }
    }
}

async fn change_app(store: &SharedStore, id: AppId, name: &str) {
    loop {
        let found = must(store.app(&AppRef::Id(id)).await);
        let mut app: Application = found.expect("the application is there");
        let was = app.updated_at;
        app.metadata.insert(name.into(), "set".into());
        app.updated_at = UnixMillis(was.0 + 1);
        match store.update_app(&app, was).await {
            Err(StoreError::Changed) => {}
            done => return assert!(must(done).is_some()),
        }
    }
}

/// The first claim of a key stands; only its own resource drops it; one that ended is replaced.
pub async fn a_claim_is_kept_until_it_is_dropped_or_ends(store: SharedStore) {
    let now = UnixMillis::now();
    let claim = |resource: u8, expires_at: UnixMillis| Claim {
        key: [1; 32],
        resource: [resource; 16],
        fingerprint: [resource; 32],
        expires_at,
    };
    let ended = claim(1, now.minus(HOUR));
    must(store.keep_claim(&ended).await);
    assert_eq!(must(store.claims(&[ended.key]).await), [None]);
    let first = claim(2, now.plus(HOUR));
    assert_eq!(
        must(store.keep_claim(&first).await),
        first,
        "it takes the ended one's place"
    );
    assert_eq!(must(store.keep_claim(&claim(3, now.plus(2 * HOUR))).await), first);
    assert_eq!(must(store.claims(&[first.key]).await), [Some(first.clone())]);
    must(store.drop_claim(&first.key, &[3; 16]).await);
    assert_eq!(must(store.claims(&[first.key]).await), [Some(first.clone())]);
    must(store.drop_claim(&first.key, &first.resource).await);
    assert_eq!(must(store.claims(&[first.key]).await), [None]);
}

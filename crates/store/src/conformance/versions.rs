//! Checks of `ConfigStore`: versions, what changed, and changes at the same time.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_model::{AppId, Application, Endpoint, EndpointId, UnixMillis};

use super::config::event_type;
use super::fixture::{World, must, until};
use crate::{AppRef, EndpointRef, SharedStore, StoreError};

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

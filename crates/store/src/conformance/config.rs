//! Checks of `ConfigStore`.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_model::{
    AppId, Claim, EndpointSecret, EventType, EventTypeId, ExhaustedPolicy, HeaderNames, KeyId, RetrySchedule,
    UnixMillis,
};
use secrecy::{ExposeSecret, SecretString};

use super::fixture::{HOUR, World, first, must};
use crate::{AppRef, EndpointRef, EndpointUse, NewKey, Page, SharedStore, StoreError};

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
    let counted = async || must(store.endpoint_use(world.app).await).count;
    assert_eq!(counted().await, 1);
    must(
        store
            .delete_endpoint(world.app, endpoint.id, UnixMillis::now())
            .await,
    );
    assert_eq!(counted().await, 0);
    second.id = world.draft().id;
    must(store.create_endpoint(&second).await);
    must(store.create_endpoint(&world.draft()).await);
    assert_eq!(counted().await, 2);
}

/// What an application's endpoints take follows each of their changes; deleted ones and other applications' take nothing.
pub async fn what_endpoints_take_is_counted(store: SharedStore) {
    let world = World::new(store).await;
    let taken = async || must(world.store.endpoint_use(world.app).await);
    let none = EndpointUse { count: 0, bytes: 0 };
    assert_eq!(taken().await, none);
    let one = world.endpoint(|_| {}).await;
    let mut other = world.endpoint(|_| {}).await;
    let was = other.updated_at;
    other.description = "d".repeat(10_000);
    other.updated_at = UnixMillis(was.0 + 1);
    must(world.store.update_endpoint(&other, was).await);
    let both = EndpointUse {
        count: 2,
        bytes: (one.memory_bytes() + other.memory_bytes()) as u64,
    };
    assert_eq!(taken().await, both);
    must(
        world
            .store
            .delete_endpoint(world.app, other.id, UnixMillis::now())
            .await,
    );
    let left = EndpointUse {
        count: 1,
        bytes: one.memory_bytes() as u64,
    };
    assert_eq!(taken().await, left);
    let elsewhere = world.id(AppId::generate);
    assert_eq!(must(world.store.endpoint_use(elsewhere).await), none);
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

pub(super) fn event_type(world: &World, name: &str, now: UnixMillis) -> EventType {
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
    let back = make("invoice.paid");
    must(store.create_event_type(&back).await);
    assert_eq!(names(false).await, ["invoice.paid", "user.created"]);
    let found = must(store.event_type("invoice.paid").await).expect("found");
    assert_eq!(found.id, back.id, "it takes the place of the archived one");
    assert!(matches!(
        store.create_event_type(&make("invoice.paid")).await,
        Err(StoreError::Conflict("name"))
    ));
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
    let newest = |after| Page {
        after,
        backwards: false,
        descending: true,
        limit: 2,
    };
    let keys = must(store.keys(&newest(None)).await);
    assert_eq!((keys.len(), keys[0].revoked_at), (1, Some(now)));
    let mut made = vec![key.id];
    for n in 10..14_u8 {
        let at = UnixMillis::now().plus(Duration::from_secs(u64::from(n)));
        let later = NewKey {
            id: KeyId::generate(at, &mut rand::rng()),
            hash: [n; 32],
            ..key.clone()
        };
        must(store.create_key(&later).await);
        made.push(later.id);
    }
    let mut seen: Vec<KeyId> = Vec::new();
    while seen.len() < made.len() {
        let page = must(store.keys(&newest(seen.last().copied())).await);
        assert_eq!(page.len() > 2, seen.len() < 3, "one more tells of the next page");
        seen.extend(page.iter().take(2).map(|stored| stored.key.id));
    }
    seen.reverse();
    assert_eq!(seen, made);
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

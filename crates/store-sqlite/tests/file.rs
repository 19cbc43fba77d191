//! What is particular to a store in a file: durability, sealing, schema versions.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_model::{
    Accepted, AppId, Application, DeferReason, DeliveryId, Disposition, Endpoint, EndpointId, EndpointSecret,
    Message, MessageId, NewDelivery, Record, TaskId, Trigger, UnixMillis,
};
use postrider_secrets::Keyring;
use postrider_store::{
    AppRef, ConfigStore, EndpointRef, Grant, LogStore, RecordStore, StoreError, TaskKind, TaskRow, TaskState,
    UpkeepStore, WaitingStore,
};
use postrider_store_sqlite::{Settings, SqliteStore};
use secrecy::SecretString;
use uuid::Uuid;

const SECRET: &str = "whsec_bm90LWluLXRoZS1maWxl";
const PAYLOAD: &[u8] = b"{\"card\":\"4242-not-in-the-file\"}";

fn keyring() -> Arc<Keyring> {
    Arc::new(Keyring::generate().expect("randomness").0)
}

fn open(path: &Path, keyring: &Arc<Keyring>) -> Arc<SqliteStore> {
    SqliteStore::open(path, Settings::new(keyring.clone())).expect("the store opens")
}

/// An application, an endpoint and a message that waits for it; all ids have this number.
async fn fill(store: &SqliteStore, number: u128) -> Message {
    let now = UnixMillis::now();
    let app = AppId::from_uuid(Uuid::from_u128(number));
    let application = Application {
        id: app,
        uid: None,
        name: "a tenant".into(),
        throttle_rate: None,
        propagate_traceparent: false,
        metadata: std::collections::BTreeMap::new(),
        created_at: now,
        updated_at: now,
    };
    store.create_app(&application).await.expect("an application");
    let endpoint = Endpoint {
        id: EndpointId::from_uuid(Uuid::from_u128(number)),
        app,
        uid: None,
        url: "https://example.com/".into(),
        description: String::new(),
        event_types: vec![],
        channels: vec![],
        disabled: false,
        paused: false,
        throttle_rate: None,
        ordered: false,
        on_exhausted: postrider_model::ExhaustedPolicy::Skip,
        header_names: postrider_model::HeaderNames::Standard,
        timeout: None,
        retry_schedule: None,
        headers: [("authorization".to_owned(), SecretString::from(SECRET))].into(),
        secrets: vec![EndpointSecret {
            text: SecretString::from(SECRET),
            expires_at: None,
        }],
        metadata: std::collections::BTreeMap::new(),
        created_at: now,
        updated_at: now,
    };
    store.create_endpoint(&endpoint).await.expect("an endpoint");
    let message = Message {
        id: MessageId::from_uuid(Uuid::from_u128(number)),
        app,
        event_type: "invoice.paid".into(),
        event_id: None,
        channels: vec![],
        content_type: "application/json".into(),
        payload: Bytes::from_static(PAYLOAD),
        accepted_at: now,
        payload_retention_days: None,
        traceparent: None,
    };
    let record = Record::Accepted(Accepted {
        message: Arc::new(message.clone()),
        deliveries: vec![NewDelivery {
            id: DeliveryId::derive(message.id, endpoint.id),
            endpoint: endpoint.id,
            disposition: Disposition::Waiting(DeferReason::Backlog),
        }],
        trigger: Trigger::Scheduled,
        claims: vec![],
    });
    store.record(&[record]).await.expect("recorded");
    message
}

fn grants(numbers: &[u128]) -> Vec<Grant> {
    numbers
        .iter()
        .map(|number| Grant {
            endpoint: EndpointId::from_uuid(Uuid::from_u128(*number)),
            count: 10,
            probe: false,
            has_token: false,
            ordered: false,
            not_before: Duration::ZERO,
            is_full: false,
        })
        .collect()
}

#[tokio::test]
async fn what_was_awaited_is_there_after_a_restart_without_closing() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("postrider.db");
    let keyring = keyring();
    let store = open(&path, &keyring);
    let message = fill(&store, 7).await;
    // The first store still holds the file: as after a crash, nothing was flushed by closing it.
    let again = open(&path, &keyring);
    let row = again
        .message(message.app, message.id, true)
        .await
        .expect("a read");
    assert_eq!(row.expect("recorded").message, message);
    let leased = again
        .lease(&grants(&[7]), Duration::from_secs(60), Duration::ZERO)
        .await
        .expect("a lease");
    assert_eq!(*leased[0].job.message, message);
}

#[tokio::test]
async fn secrets_and_payloads_are_not_in_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("postrider.db");
    let store = open(&path, &keyring());
    fill(&store, 7).await;
    store
        .park("job", "crashed", &Bytes::from_static(PAYLOAD))
        .await
        .expect("parked");
    for closed in [false, true] {
        if closed {
            store.close().await;
        }
        for entry in std::fs::read_dir(directory.path()).expect("a directory") {
            let entry = entry.expect("an entry");
            let bytes = std::fs::read(entry.path()).expect("a file");
            for needle in [SECRET.as_bytes(), &PAYLOAD[9..20]] {
                let found = bytes.windows(needle.len()).any(|window| window == needle);
                assert!(!found, "{:?} (closed: {closed})", entry.path());
            }
        }
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o077, 0, "the file is its owner's");
    }
}

#[tokio::test]
async fn a_lost_key_is_told_and_stops_only_what_needs_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("postrider.db");
    let store = open(&path, &keyring());
    let message = fill(&store, 7).await;
    let parked = store.park("job", "crashed", &Bytes::from_static(PAYLOAD)).await;
    assert!(parked.expect("parked"));
    store.close().await;
    let store = open(&path, &keyring());
    let parked = store.parked(10, None).await.expect("a list").rows;
    assert!(parked[0].sealed_away && parked[0].bytes.is_empty(), "{parked:?}");
    let removed = store.unpark(parked[0].id).await.expect("removed");
    assert_eq!(removed.map(|row| row.reason), Some("crashed".to_owned()));
    let sealed_before = EndpointRef::Id(EndpointId::from_uuid(Uuid::from_u128(7)));
    let read = store.endpoint(message.app, &sealed_before).await;
    assert!(matches!(read, Err(StoreError::Corrupt(_))), "{read:?}");
    let read = store.message(message.app, message.id, true).await;
    assert!(matches!(read, Err(StoreError::Corrupt(_))), "{read:?}");
    let row = store
        .message(message.app, message.id, false)
        .await
        .expect("a read");
    assert!(row.is_some(), "the record needs no key");
    let fresh = fill(&store, 8).await;
    let leased = store
        .lease(&grants(&[7, 8]), Duration::from_secs(60), Duration::ZERO)
        .await
        .expect("a lease");
    let leased: Vec<_> = leased.iter().map(|leased| leased.job.message.id).collect();
    assert_eq!(leased, [fresh.id], "the readable one goes");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("postrider.db");
    let keyring = keyring();
    let store = open(&path, &keyring);
    let (version, _) = store.migrate().await.expect("current");
    rusqlite::Connection::open(&path)
        .and_then(|connection| connection.pragma_update(None, "user_version", version + 1))
        .expect("a newer version");
    let checked = store.check_schema().await;
    assert!(matches!(checked, Err(StoreError::Schema { .. })), "{checked:?}");
    let opened = SqliteStore::open(&path, Settings::new(keyring)).map(|_| ());
    let Err(StoreError::Schema { found, wanted }) = opened else {
        panic!("{opened:?}");
    };
    assert_eq!((found, wanted), (version + 1, version));
}

/// A command beside the process that serves: it waits for no write, and leaves the schema and the WAL alone.
#[tokio::test]
async fn who_does_not_serve_holds_up_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("postrider.db");
    let keyring = keyring();
    let visit = || {
        let settings = Settings {
            serves: false,
            ..Settings::new(keyring.clone())
        };
        SqliteStore::open(&path, settings)
    };
    assert!(matches!(visit(), Err(StoreError::Unavailable(_))));
    assert!(!path.exists(), "it makes nothing");
    let serving = open(&path, &keyring);
    let message = fill(&serving, 1).await;
    let wal = || std::fs::metadata(directory.path().join("postrider.db-wal")).map_or(0, |wal| wal.len());
    let before = wal();
    assert!(before > 0);
    let writes = rusqlite::Connection::open(&path).expect("the file");
    writes
        .execute_batch("BEGIN IMMEDIATE")
        .expect("the lock of who writes");
    let began = std::time::Instant::now();
    let visiting = visit().expect("the store opens");
    let payload = visiting.payload(message.id).await.expect("a read");
    assert_eq!(payload.expect("it is there").1, PAYLOAD);
    visiting.close().await;
    assert!(began.elapsed() < Duration::from_secs(4), "it would wait for five");
    writes.execute_batch("ROLLBACK").expect("its end");
    assert_eq!(wal(), before);
    serving.close().await;
    assert_eq!(wal(), 0);
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(&directory.path().join("postrider.db"), &keyring());
    store.close().await;
    store.close().await;
    let app = AppRef::Uid("acme".into());
    let read = store.app(&app).await;
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    let written = store.record(&[]).await;
    assert!(matches!(written, Err(StoreError::Unavailable(_))), "{written:?}");
}

#[tokio::test]
async fn a_task_that_fails_undoes_nothing_of_a_sweep() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("postrider.db");
    let store = open(&path, &keyring());
    store.migrate().await.expect("a schema");
    fill(&store, 7).await;
    fill(&store, 8).await;
    let now = UnixMillis::now();
    let task = TaskRow {
        id: TaskId::from_uuid(Uuid::from_u128(1)),
        kind: TaskKind::Recover,
        app: AppId::from_uuid(Uuid::from_u128(8)),
        endpoint: EndpointId::from_uuid(Uuid::from_u128(8)),
        since: UnixMillis(0),
        until: now,
        cursor: None,
        state: TaskState::Running,
        updated_at: now,
    };
    store.create_task(&task).await.expect("a task");
    let app = AppId::from_uuid(Uuid::from_u128(7));
    store.delete_app(app, now).await.expect("deleted");
    let file = rusqlite::Connection::open(&path).expect("the file");
    file.execute(
        "UPDATE endpoints SET event_types = 'no list' WHERE app = ?1",
        [task.app.as_bytes()],
    )
    .expect("broken");
    let report = store.sweep(10).await.expect("what else it did");
    assert_eq!((report.cancelled, report.recovered), (1, 0));
    let failed = store.sweep(10).await;
    assert!(failed.is_err(), "alone it is an error: {failed:?}");
}

#[tokio::test]
async fn a_task_that_fails_or_is_of_an_unknown_kind_does_not_stand_before_the_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("postrider.db");
    let store = open(&path, &keyring());
    store.migrate().await.expect("a schema");
    fill(&store, 7).await;
    fill(&store, 8).await;
    let now = UnixMillis::now();
    let task = |number: u128, updated_at| TaskRow {
        id: TaskId::from_uuid(Uuid::from_u128(number)),
        kind: TaskKind::Recover,
        app: AppId::from_uuid(Uuid::from_u128(number)),
        endpoint: EndpointId::from_uuid(Uuid::from_u128(number)),
        since: UnixMillis(0),
        until: now,
        cursor: None,
        state: TaskState::Running,
        updated_at,
    };
    let (fails, works) = (task(7, UnixMillis(1)), task(8, now));
    for task in [&fails, &works] {
        store.create_task(task).await.expect("a task");
    }
    let file = rusqlite::Connection::open(&path).expect("the file");
    file.execute(
        "UPDATE endpoints SET event_types = 'no list' WHERE app = ?1",
        [fails.app.as_bytes()],
    )
    .expect("broken");
    file.execute(
        "INSERT INTO tasks (id, kind, app, endpoint, since, until, state, updated_at)
         SELECT x'09', 9, app, endpoint, 0, 1, 0, 0 FROM tasks LIMIT 1",
        [],
    )
    .expect("a task of a newer version");
    assert!(store.sweep(10).await.is_err(), "the first one was to fail");
    let _ = store.sweep(10).await;
    let found = store.task(works.id).await.expect("read").expect("there");
    assert_eq!(found.state, TaskState::Finished);
}

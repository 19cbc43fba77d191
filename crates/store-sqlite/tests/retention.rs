//! Retention of a store in a file: a clock that was wrong, and how much one chunk touches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_model::{
    Accepted, AppId, Application, Attempt, AttemptClass, AttemptId, DeferReason, DeliveryId, Disposition,
    EndpointId, KeyId, Message, MessageId, NewDelivery, Next, Outcome, Record, Trigger, UnixMillis,
};
use postrider_secrets::Keyring;
use postrider_store::transfer::Portion;
use postrider_store::{
    ConfigStore, LogStore, NewKey, Page, RecordStore, RetentionReport, Since, UpkeepStore,
};
use postrider_store_sqlite::{Export, Settings, SqliteStore};
use tempfile::TempDir;
use uuid::Uuid;

const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

struct World {
    store: Arc<SqliteStore>,
    directory: TempDir,
    payload_bytes: usize,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let keyring = Arc::new(Keyring::generate().expect("randomness").0);
        let path = directory.path().join("postrider.db");
        let store = SqliteStore::open(&path, Settings::new(keyring)).expect("the store opens");
        Self {
            store,
            directory,
            payload_bytes: 2,
        }
    }

    /// Records a message that was made at `at` for so many endpoints, at each of which it waits after an attempt.
    async fn message(&self, at: UnixMillis, endpoints: u128) -> MessageId {
        let id = MessageId::generate(at, &mut rand::rng());
        let app = AppId::from_uuid(Uuid::from_u128(1));
        let message = Arc::new(Message {
            id,
            app,
            event_type: "invoice.paid".into(),
            event_id: None,
            channels: vec![],
            content_type: "application/json".into(),
            payload: vec![b'x'; self.payload_bytes].into(),
            accepted_at: at,
            payload_retention_days: None,
            traceparent: None,
        });
        let endpoints = (0..endpoints).map(|n| EndpointId::from_uuid(Uuid::from_u128(n)));
        let deliveries: Vec<NewDelivery> = endpoints
            .map(|endpoint| NewDelivery {
                id: DeliveryId::derive(id, endpoint),
                endpoint,
                disposition: Disposition::Waiting(DeferReason::Backlog),
            })
            .collect();
        let failed = |delivery: &NewDelivery| Outcome {
            delivery: delivery.id,
            message: id,
            endpoint: delivery.endpoint,
            app,
            run: 0,
            attempts: 1,
            trigger: Trigger::Scheduled,
            at,
            attempt: Some(Attempt {
                id: AttemptId::generate(at, &mut rand::rng()),
                started_at: at,
                duration: Duration::from_millis(5),
                class: AttemptClass::Status,
                status: 500,
                response: Bytes::new(),
                url: "https://example.com/".into(),
            }),
            next: Next::Retry { delay: DAY },
        };
        let mut batch: Vec<Record> = deliveries
            .iter()
            .map(|delivery| Record::Outcome(Box::new(failed(delivery))))
            .collect();
        let accepted = Accepted {
            message,
            deliveries,
            trigger: Trigger::Scheduled,
            claims: vec![],
        };
        batch.insert(0, Record::Accepted(accepted));
        self.store.record(&batch).await.expect("recorded");
        id
    }

    async fn retain(&self, payloads: Duration, log: Duration, limit: u32) -> RetentionReport {
        let report = self.store.retain(payloads, log, limit).await;
        report.expect("a chunk")
    }

    async fn has_payload(&self, message: MessageId) -> bool {
        let payload = self.store.payload(message).await;
        payload.expect("a read").is_some()
    }

    /// Rows of these tables.
    fn rows(&self, tables: &[&str]) -> u32 {
        let path = self.directory.path().join("postrider.db");
        let connection = rusqlite::Connection::open(path).expect("the file");
        let count = |table: &&str| {
            let sql = format!("SELECT count(*) FROM {table}");
            connection.query_row(&sql, [], |row| row.get::<_, u32>(0))
        };
        tables.iter().map(|table| count(table).expect("a count")).sum()
    }
}

#[tokio::test]
async fn a_clock_that_was_wrong_holds_up_nobody() {
    let world = World::new();
    let now = UnixMillis::now();
    let future = world.message(now.plus(YEAR), 1).await;
    let young = world.message(now.minus(DAY), 1).await;
    let old = world.message(now.minus(DAY * 5), 1).await;
    let last = world.message(now.minus(DAY), 1).await;
    for _ in 0..3 {
        world.retain(DAY * 3, YEAR, 100).await;
    }
    let kept = [
        world.has_payload(future).await,
        world.has_payload(young).await,
        world.has_payload(old).await,
        world.has_payload(last).await,
    ];
    assert_eq!(kept, [true, true, false, true]);
    let end = |message: MessageId| {
        let path = world.directory.path().join("postrider.db");
        let connection = rusqlite::Connection::open(path).expect("the file");
        let sql = "SELECT expires_at FROM bodies WHERE message = ?1";
        let end = connection.query_row(sql, [message.as_bytes()], |row| row.get::<_, Option<i64>>(0));
        end.expect("its body")
    };
    assert_eq!(end(young), Some(young.created_at().plus(DAY * 3).0));
    let passed = UnixMillis(end(future).expect("an end of its own"));
    assert!(
        passed >= now.plus(DAY * 3) && passed <= UnixMillis::now().plus(DAY * 3),
        "as if it came now"
    );
    assert_eq!(end(last), None);
}

#[tokio::test]
async fn a_chunk_is_bounded_in_rows() {
    const LIMIT: u32 = 10;
    const TABLES: [&str; 5] = ["messages", "bodies", "deliveries", "attempts", "waiting"];
    let world = World::new();
    let made_at = UnixMillis::now().minus(DAY * 5);
    for endpoints in [25, 0, 3, 25] {
        world.message(made_at, endpoints).await;
    }
    // First the payloads, with what waits for them, then the rest.
    for (log, left, cancelled) in [(YEAR, 4 + 53 + 53, 53), (DAY * 4, 0, 0)] {
        let mut sum = RetentionReport::default();
        let mut before = world.rows(&TABLES);
        loop {
            let report = world.retain(DAY * 3, log, LIMIT).await;
            if report == RetentionReport::default() {
                break;
            }
            let now = world.rows(&TABLES);
            // A payload goes with the row before it, a waiting row with its delivery.
            assert!(before - now <= 2 * LIMIT, "{before} rows, then {now}");
            before = now;
            sum.cancelled += report.cancelled;
            sum.payloads += report.payloads;
            sum.messages += report.messages;
        }
        assert_eq!((before, sum.cancelled), (left, cancelled));
        assert_eq!(
            (sum.payloads, sum.messages),
            if left > 0 { (4, 0) } else { (0, 4) }
        );
    }
}

#[tokio::test]
async fn records_that_wait_still_go_in_portions_with_their_message_last() {
    let world = World::new();
    let made_at = UnixMillis::now().minus(DAY * 5);
    let message = world.message(made_at, 25).await;
    let mut cancelled = 0;
    let mut chunks = 0;
    while world.rows(&["deliveries", "attempts", "waiting"]) > 0 {
        assert!(world.has_payload(message).await, "it goes last");
        assert_eq!(world.rows(&["messages"]), 1, "it goes last");
        let report = world.retain(YEAR, DAY * 4, 10).await;
        assert!(report.more);
        cancelled += report.cancelled;
        chunks += 1;
    }
    assert_eq!((cancelled, chunks), (25, 5));
    assert_eq!(world.retain(YEAR, DAY * 4, 10).await.messages, 1);
    assert_eq!(world.rows(&["messages", "bodies", "waiting"]), 0);
}

/// Whoever removes a large payload reads all of it, while all else waits.
#[tokio::test]
async fn a_chunk_is_bounded_by_what_it_removes() {
    let world = World {
        payload_bytes: 256 * 1024,
        ..World::new()
    };
    let old = UnixMillis::now().minus(DAY * 5);
    for _ in 0..6 {
        world.message(old, 0).await;
    }
    let mut removed = Vec::new();
    loop {
        let report = world.retain(DAY * 3, YEAR, 40).await;
        removed.push(report.payloads);
        if !report.more {
            break;
        }
    }
    // Each counts as seventeen rows.
    assert_eq!(removed, [3, 3, 0]);
}

/// The next change of an application's configuration is numbered after the last: who asks what changed would miss one that has
/// a number a second time.
#[tokio::test]
async fn no_change_of_configuration_has_an_earlier_ones_number() {
    let world = World::new();
    let long_ago = UnixMillis::now().minus(YEAR);
    let app = Application {
        id: AppId::from_uuid(Uuid::from_u128(1)),
        uid: None,
        name: "a tenant".into(),
        throttle_rate: None,
        propagate_traceparent: false,
        metadata: BTreeMap::new(),
        created_at: long_ago,
        updated_at: long_ago,
    };
    world.store.create_app(&app).await.expect("created");
    world.store.delete_app(app.id, long_ago).await.expect("deleted");
    let told = async || {
        let answer = world.store.changed_apps(Some(Since(0)), 100).await;
        answer.expect("an answer").next
    };
    let before = told().await;
    world.retain(DAY, DAY, 100).await;
    assert_eq!(told().await, before);
}

/// A store without any key is greeted as a new one, and given one: whoever revoked all wants none.
#[tokio::test]
async fn the_last_keys_stay_revoked() {
    let world = World::new();
    let long_ago = UnixMillis::now().minus(YEAR);
    let revoked = async |hash: u8| {
        let key = NewKey {
            id: KeyId::generate(long_ago, &mut rand::rng()),
            hash: [hash; 32],
            scope: "admin".into(),
            name: String::new(),
            created_at: long_ago,
        };
        world.store.create_key(&key).await.expect("created");
        assert!(world.store.revoke_key(key.id, long_ago).await.expect("revoked"));
    };
    for hash in 0..3 {
        revoked(hash).await;
    }
    world.retain(DAY, DAY, 100).await;
    let all = Page {
        after: None,
        backwards: false,
        descending: false,
        limit: 10,
    };
    assert_eq!(world.store.keys(&all).await.expect("keys").len(), 3);
}

/// What is recorded after retention makes its delivery anew, of a message and an endpoint that are gone.
#[tokio::test]
async fn what_came_late_for_nobody_moves_too() {
    let world = World::new();
    for _ in 0..2 {
        world.message(UnixMillis::now(), 1).await;
    }
    world.store.close().await;
    let path = world.directory.path().join("postrider.db");
    let connection = rusqlite::Connection::open(&path).expect("the file");
    let gone =
        "DELETE FROM messages; DELETE FROM attempts WHERE message = (SELECT min(message) FROM attempts)";
    connection.execute_batch(gone).expect("removed");
    drop(connection);
    let mut export =
        Export::open(&path, Arc::new(Keyring::generate().expect("randomness").0)).expect("a file");
    let mut apps = Vec::new();
    while let Some(portion) = export.next_portion().expect("a portion") {
        if let Portion::Deliveries(rows) = portion {
            apps.extend(rows.iter().map(|row| row.app.as_uuid().as_u128()));
        }
    }
    assert_eq!(apps, [0, 1]);
}

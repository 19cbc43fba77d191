//! The gateway before a store that takes its time: what one request waits for, others must not suffer from.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use postrider_gateway::Settings;
use postrider_secrets::Keyring;
use postrider_store::SharedStore;
use postrider_store_postgres::PostgresStore;
use postrider_testkit::services::PostgresDatabase;
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::harness::{Answer, Harness, reads, text};

/// A gateway on Postgres, whose tables others can lock.
struct Slow {
    harness: Arc<Harness>,
    database: PostgresDatabase,
}

impl Slow {
    async fn new() -> Self {
        let database = PostgresDatabase::create().await.expect("a database");
        let keyring = Arc::new(Keyring::generate().expect("randomness").0);
        let url = SecretString::from(database.url());
        let settings = postrider_store_postgres::Settings::new(url, keyring);
        let store: SharedStore = PostgresStore::connect(settings).expect("a store");
        store.migrate().await.expect("a schema");
        let harness = Arc::new(Harness::over(store, true, Settings::default()));
        harness.until_ready().await;
        Self { harness, database }
    }

    /// Keeps others off what this statement locks, until it is dropped.
    async fn lock(&self, statement: &'static str) -> PgConnection {
        let mut lock = PgConnection::connect(self.database.url())
            .await
            .expect("a connection");
        for statement in ["BEGIN", statement] {
            let locked = sqlx::query(statement).execute(&mut lock).await;
            locked.expect("locked");
        }
        lock
    }

    /// The request, under way.
    fn post_with_key(
        &self,
        path: &'static str,
        key: &'static str,
        body: Value,
    ) -> tokio::task::JoinHandle<Answer> {
        let harness = Arc::clone(&self.harness);
        tokio::spawn(async move { harness.post_with_key(path, key, body).await })
    }
}

#[tokio::test]
async fn a_repeated_rotation_answers_with_the_new_secret() {
    let slow = Slow::new().await;
    slow.harness.acme().await;
    let secret = "/api/v1/app/acme/endpoint/main/secret";
    let before = slow.harness.get(secret).await.is(StatusCode::OK);
    let lock = slow
        .lock("LOCK TABLE endpoints IN SHARE ROW EXCLUSIVE MODE")
        .await;
    let rotate = "/api/v1/app/acme/endpoint/main/secret/rotate";
    let first = slow.post_with_key(rotate, "k", json!({}));
    tokio::time::sleep(Duration::from_millis(300)).await;
    // It reads the endpoint, and then waits for the first one.
    let repeat = slow.post_with_key(rotate, "k", json!({}));
    tokio::time::sleep(Duration::from_millis(300)).await;
    lock.close().await.expect("unlocked");
    let first = first.await.expect("answered").is(StatusCode::OK);
    let repeat = repeat.await.expect("answered").is(StatusCode::OK);
    assert_ne!(text(&first, "key"), text(&before, "key"));
    assert_eq!(repeat, first);
    assert_eq!(slow.harness.get(secret).await.is(StatusCode::OK), first);
}

#[tokio::test]
async fn those_who_ask_for_an_application_that_is_not_there_do_not_wait_for_each_other() {
    let slow = Slow::new().await;
    let before = reads(&slow.harness);
    let lock = slow
        .lock("LOCK TABLE applications IN ACCESS EXCLUSIVE MODE")
        .await;
    let asked: Vec<_> = (0..100)
        .map(|_| {
            let body = json!({"eventType": "a", "payload": {}});
            slow.post_with_key("/api/v1/app/gone/msg", "k", body)
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    lock.close().await.expect("unlocked");
    for answer in asked {
        answer.await.expect("answered").is(StatusCode::NOT_FOUND);
    }
    let reads = reads(&slow.harness) - before;
    assert!(reads <= 3, "{reads}");
}

#[tokio::test]
async fn a_repeat_that_overtakes_its_first_request_makes_the_same() {
    let slow = Slow::new().await;
    slow.harness.acme().await;
    let endpoint = json!({"url": "https://example.com/2"});
    let recovery = json!({"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"});
    let requests = [
        ("/api/v1/app", json!({"name": "no uid"}), StatusCode::CREATED),
        ("/api/v1/app/acme/endpoint", endpoint, StatusCode::CREATED),
        (
            "/api/v1/event-type",
            json!({"name": "a", "description": ""}),
            StatusCode::CREATED,
        ),
        (
            "/api/v1/app/acme/endpoint/main/recover",
            recovery,
            StatusCode::ACCEPTED,
        ),
    ];
    let send = || {
        let sent = requests.iter();
        // A key stands for one request of an application, whatever its path.
        sent.map(|(path, body, _)| slow.post_with_key(path, path, body.clone()))
            .collect::<Vec<_>>()
    };
    let tables = "LOCK TABLE applications, endpoints, event_types, tasks IN SHARE ROW EXCLUSIVE MODE";
    let lock = slow.lock(tables).await;
    let first = send();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let second = send();
    // These take over, and do not see what is not committed.
    tokio::time::sleep(Duration::from_millis(5300)).await;
    lock.close().await.expect("unlocked");
    for (((_, _, status), first), second) in requests.iter().zip(first).zip(second) {
        let first = first.await.expect("answered").is(*status);
        let second = second.await.expect("answered").is(*status);
        assert_eq!(first, second);
    }
    for ((_, _, status), third) in requests.iter().zip(send()) {
        third.await.expect("answered").is(*status);
    }
    for list in ["/api/v1/app", "/api/v1/app/acme/endpoint"] {
        let listed = slow.harness.get(list).await.is(StatusCode::OK);
        assert_eq!(listed["data"].as_array().map(Vec::len), Some(2), "{list}");
    }
}

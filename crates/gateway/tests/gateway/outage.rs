//! The gateway without its store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use http::{Method, StatusCode};
use postrider_gateway::Settings;
use postrider_secrets::Keyring;
use postrider_store::SharedStore;
use postrider_store_postgres::PostgresStore;
use postrider_testkit::services::PostgresServer;
use secrecy::SecretString;
use serde_json::json;

use crate::harness::{Harness, text};

#[tokio::test]
async fn without_the_store_a_cached_application_goes_on() {
    let mut server = PostgresServer::start().await.expect("a server");
    let keyring = Arc::new(Keyring::generate().expect("randomness").0);
    let settings = postrider_store_postgres::Settings::new(SecretString::from(server.url()), keyring);
    let store: SharedStore = PostgresStore::connect(settings).expect("a store");
    store.migrate().await.expect("a schema");
    let harness = Harness::over(store, true, Settings::default());
    harness.until_ready().await;
    harness.acme().await;
    let other = json!({"name": "Other", "uid": "other"});
    harness.post("/api/v1/app", other).await.is(StatusCode::CREATED);
    let body = json!({"eventType": "a", "payload": {}});
    harness.message(body.clone()).await.is(StatusCode::ACCEPTED);
    let app = harness.broker.accepted()[0].message.app;
    let key = harness.post(
        "/api/v1/auth/key",
        json!({"scope": "ingest", "name": "a producer"}),
    );
    let key = key.await.is(StatusCode::CREATED);
    let send = async || {
        let bearer = format!("Bearer {}", text(&key, "key"));
        let headers = [
            ("authorization", &bearer[..]),
            ("content-type", "application/json"),
        ];
        let body = Body::from(body.to_string());
        harness
            .call(Method::POST, "/api/v1/app/acme/msg", &headers, body)
            .await
    };
    send().await.is(StatusCode::ACCEPTED);

    server.stop().await.expect("stopped");
    harness.broker.recording.store(false, Ordering::SeqCst);
    // Known to have changed, and cannot be read again: what is cached still counts.
    harness
        .limits
        .publish_version(app, 1_000_000)
        .await
        .expect("published");
    harness.message(body.clone()).await.is(StatusCode::ACCEPTED);
    assert_eq!(harness.broker.jobs().len(), 3);
    // A stored key that was looked up longer ago than it is trusted: one request a second waits for the store, and no longer
    // than a second.
    tokio::time::sleep(Duration::from_millis(10_100)).await;
    send().await.is(StatusCode::ACCEPTED);
    let begun = Instant::now();
    for _ in 0..50 {
        send().await.is(StatusCode::ACCEPTED);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let refused = harness.post("/api/v1/app/other/msg", body.clone()).await;
    assert_eq!(refused.code(), "store_unavailable");
    assert!(refused.retry_after().is_some());
    refused.is(StatusCode::SERVICE_UNAVAILABLE);
    harness.get("/api/v1/health").await.is(StatusCode::NO_CONTENT);

    server.start_again().await.expect("started again");
    for _ in 0..100 {
        if harness.post("/api/v1/app/other/msg", body.clone()).await.status == StatusCode::ACCEPTED {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the gateway did not find its store again");
}

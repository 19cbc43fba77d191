//! Messages to an application that is not there.

use std::time::{Duration, Instant};

use http::StatusCode;
use postrider_gateway::Settings;
use serde_json::{Value, json};

use crate::harness::{Harness, reads};

fn body() -> Value {
    json!({"eventType": "a", "payload": {}})
}

#[tokio::test]
async fn a_deleted_application_is_asked_for_once_a_second_and_found_when_it_is_made_again() {
    let harness = Harness::new().await;
    harness.acme().await;
    harness.message(body()).await.is(StatusCode::ACCEPTED);
    harness
        .delete("/api/v1/app/acme")
        .await
        .is(StatusCode::NO_CONTENT);
    let (before, begun) = (reads(&harness), Instant::now());
    for _ in 0..100 {
        harness.message(body()).await.is(StatusCode::NOT_FOUND);
    }
    // One more for what was cached.
    let most = 2 + begun.elapsed().as_secs();
    assert!(reads(&harness) - before <= most, "{}", reads(&harness) - before);
    harness
        .put("/api/v1/app/acme", json!({"name": "Acme"}))
        .await
        .is(StatusCode::CREATED);
    harness.message(body()).await.is(StatusCode::ACCEPTED);

    let renamed = "/api/v1/app/acme-2/msg";
    harness.post(renamed, body()).await.is(StatusCode::NOT_FOUND);
    harness
        .patch("/api/v1/app/acme", json!({"uid": "acme-2"}))
        .await
        .is(StatusCode::OK);
    harness.post(renamed, body()).await.is(StatusCode::ACCEPTED);
}

#[tokio::test]
async fn an_application_that_another_gateway_made_is_found_soon() {
    let one = Harness::new().await;
    let two = Harness::over(one.store.clone(), false, Settings::default());
    two.until_ready().await;
    for _ in 0..10 {
        two.message(body()).await.is(StatusCode::NOT_FOUND);
    }
    one.acme().await;
    let made_at = Instant::now();
    while two.message(body()).await.status != StatusCode::ACCEPTED {
        assert!(made_at.elapsed() < Duration::from_secs(2));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It came with an answer that says so.
    let three = Harness::over(one.store.clone(), false, Settings::default());
    three.until_ready().await;
    let other = json!({"name": "Other", "uid": "other"});
    three
        .post("/api/v1/app/other/msg", body())
        .await
        .is(StatusCode::NOT_FOUND);
    one.post("/api/v1/app", other.clone())
        .await
        .is(StatusCode::CREATED);
    three.post("/api/v1/app", other).await.is(StatusCode::CONFLICT);
    three
        .post("/api/v1/app/other/msg", body())
        .await
        .is(StatusCode::ACCEPTED);
}

//! Paths: what is not there, what a slash too many changes, and what cannot be decoded.

use axum::body::Body;
use http::{Method, StatusCode};
use serde_json::json;

use crate::harness::Harness;

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let harness = Harness::new().await;
    harness.acme().await;
    let ids = ["app_nope", "app_0000000000000000000000", "no-such-uid", "b%20d"];
    for id in ids {
        let answer = harness.get(&format!("/api/v1/app/{id}")).await;
        assert_eq!(answer.code(), "not_found", "{id}");
        answer.is(StatusCode::NOT_FOUND);
    }
    for path in [
        "/api/v1/app/acme/endpoint/ep_nope",
        "/api/v1/app/acme/endpoint/unknown/secret",
        "/api/v1/app/acme/msg/msg_0000000000000000000000",
        "/api/v1/app/acme/msg/unknown",
        "/api/v1/event-type/unknown",
        "/api/v1/background-task/qtask_0000000000000000000000",
        "/api/v1/nothing",
        "/nothing",
    ] {
        let answer = harness.get(path).await;
        assert_eq!(
            (answer.code(), answer.status),
            ("not_found", StatusCode::NOT_FOUND),
            "{path}"
        );
    }
    harness
        .post("/api/v1/app/nobody/msg", json!({"eventType": "a", "payload": {}}))
        .await
        .is(StatusCode::NOT_FOUND);
    harness.delete("/api/v1/parked/1").await.is(StatusCode::NOT_FOUND);
    let answer = harness.post("/api/v1/app/acme", json!({})).await;
    assert_eq!(answer.code(), "method_not_allowed");
}

#[tokio::test]
async fn what_does_not_exist_yet_says_so() {
    let harness = Harness::new().await;
    for path in ["/api/v1/auth/app-portal-access/acme", "/api/v1/auth/logout"] {
        let answer = harness.post(path, json!({})).await;
        assert_eq!(answer.code(), "not_implemented");
        answer.is(StatusCode::NOT_IMPLEMENTED);
    }
}

#[tokio::test]
async fn a_trailing_slash_changes_nothing() {
    let harness = Harness::new().await;
    harness.acme().await;
    harness.get("/api/v1/app/?limit=1").await.is(StatusCode::OK);
    harness.get("/api/v1/app/acme/").await.is(StatusCode::OK);
    harness
        .post("/api/v1/app/acme/msg/", json!({"eventType": "a", "payload": {}}))
        .await
        .is(StatusCode::ACCEPTED);
    // What is refused is refused in the same way.
    let refused = harness.get("/api/v1/nothing/").await;
    assert_eq!(refused.code(), "not_found");
    refused.is(StatusCode::NOT_FOUND);
    let refused = harness.delete("/api/v1/app/").await;
    assert_eq!(refused.code(), "method_not_allowed");
    refused.is(StatusCode::METHOD_NOT_ALLOWED);
    let nobody = [("authorization", "Bearer nobody")];
    let refused = harness
        .call(Method::GET, "/api/v1/app/acme//?limit=1", &nobody, Body::empty())
        .await;
    refused.is(StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_path_that_cannot_be_decoded_is_refused_behind_the_key() {
    let harness = Harness::new().await;
    let path = "/api/v1/app/%FF/msg";
    harness
        .post(path, json!({"eventType": "a", "payload": {}}))
        .await
        .is(StatusCode::UNPROCESSABLE_ENTITY);
    let nobody = [("authorization", "Bearer nobody")];
    harness
        .call(Method::POST, path, &nobody, Body::empty())
        .await
        .is(StatusCode::UNAUTHORIZED);
}

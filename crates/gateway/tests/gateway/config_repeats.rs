//! Requests that change configuration: repeated after a restart, and by several gateways at once.

use std::time::Duration;

use http::StatusCode;
use postrider_gateway::Settings;
use serde_json::{Value, json};

use crate::harness::{Harness, text};

const ENDPOINTS: &str = "/api/v1/app/acme/endpoint";

fn restarted(harness: &Harness) -> Harness {
    Harness::over(harness.store.clone(), false, Settings::default())
}

#[tokio::test]
async fn embedded_a_repeat_after_a_restart_makes_no_second_one() {
    let before = Harness::new().await;
    before.acme().await;
    let recovery = json!({"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"});
    let requests = [
        ("/api/v1/app", json!({"name": "no uid"}), StatusCode::CREATED),
        (
            ENDPOINTS,
            json!({"url": "https://example.com/2"}),
            StatusCode::CREATED,
        ),
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
    let mut made = Vec::new();
    for (path, body, status) in &requests {
        // A key stands for one request of an application, whatever its path.
        made.push(before.post_with_key(path, path, body.clone()).await.is(*status));
    }
    for _ in 0..2 {
        let after = restarted(&before);
        for ((path, body, status), made) in requests.iter().zip(&made) {
            for _ in 0..2 {
                let again = after.post_with_key(path, path, body.clone()).await.is(*status);
                assert_eq!(&again, made, "{path}");
            }
        }
        let reused = after
            .post_with_key(ENDPOINTS, ENDPOINTS, json!({"url": "https://example.com/3"}))
            .await;
        assert_eq!(reused.code(), "idempotency_key_reused");
        for (path, count) in [("/api/v1/app", 2), (ENDPOINTS, 2)] {
            let list = after.get(path).await.is(StatusCode::OK);
            assert_eq!(list["data"].as_array().map(Vec::len), Some(count), "{path}");
        }
    }
}

#[tokio::test]
async fn embedded_the_key_of_a_refused_request_is_free_after_a_restart() {
    let before = Harness::new().await;
    before.acme().await;
    let taken = json!({"name": "again", "uid": "acme"});
    let refused = before.post_with_key("/api/v1/app", "k", taken).await;
    refused.is(StatusCode::CONFLICT);
    restarted(&before)
        .post_with_key("/api/v1/app", "k", json!({"name": "another"}))
        .await
        .is(StatusCode::CREATED);
}

#[tokio::test]
async fn embedded_a_rotation_that_is_repeated_after_a_restart_rotates_once() {
    let before = Harness::new().await;
    before.acme().await;
    let path = format!("{ENDPOINTS}/main/secret/rotate");
    let first = before
        .post_with_key(&path, "k", json!({}))
        .await
        .is(StatusCode::OK);
    let again = restarted(&before).post_with_key(&path, "k", json!({})).await;
    assert_eq!(again.is(StatusCode::OK), first);
}

#[tokio::test]
async fn a_rotation_whose_client_hangs_up_is_made_once() {
    let harness = Harness::with(true, Settings::default()).await;
    harness.acme().await;
    let secret = format!("{ENDPOINTS}/main/secret");
    let rotate = format!("{secret}/rotate");
    for round in 0..24 {
        let key = format!("round {round}");
        let before = harness.get(&secret).await.is(StatusCode::OK);
        let request = harness.post_with_key(&rotate, &key, json!({}));
        let _ = tokio::time::timeout(Duration::from_millis(round % 8), request).await;
        // What of it goes on.
        let mut found = before.clone();
        for _ in 0..50 {
            if found != before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
            found = harness.get(&secret).await.is(StatusCode::OK);
        }
        let repeated = harness.post_with_key(&rotate, &key, json!({})).await;
        let repeated = repeated.is(StatusCode::OK);
        assert_ne!(repeated, before, "round {round}");
        assert!(
            found == before || found == repeated,
            "round {round}: rotated twice"
        );
    }
}

#[tokio::test]
async fn changes_of_different_fields_by_two_gateways_both_hold() {
    let one = Harness::new().await;
    one.acme().await;
    one.post("/api/v1/event-type", json!({"name": "a", "description": ""}))
        .await
        .is(StatusCode::CREATED);
    let two = restarted(&one);
    let endpoint = format!("{ENDPOINTS}/main");
    for (path, text_field, other_field) in [
        (endpoint.as_str(), "description", "throttleRate"),
        ("/api/v1/app/acme", "name", "throttleRate"),
        ("/api/v1/event-type/a", "description", "featureFlag"),
    ] {
        for round in 1..=30 {
            let of_one = json!({text_field: format!("round {round}")});
            let value = if other_field == "featureFlag" {
                json!(format!("f{round}"))
            } else {
                json!(round)
            };
            let of_two: Value = json!({other_field: value});
            let (a, b) = tokio::join!(one.patch(path, of_one.clone()), two.patch(path, of_two.clone()));
            a.is(StatusCode::OK);
            b.is(StatusCode::OK);
            let found = one.get(path).await.is(StatusCode::OK);
            assert_eq!(found[text_field], of_one[text_field], "{path}, round {round}");
            assert_eq!(found[other_field], of_two[other_field], "{path}, round {round}");
        }
    }
    // Headers and secrets are the same row.
    let (headers, rotate) = (format!("{endpoint}/headers"), format!("{endpoint}/secret/rotate"));
    for round in 0..30 {
        let name = format!("x-{round}");
        let header = json!({"headers": {&name: "set"}});
        let (a, b) = tokio::join!(one.patch(&headers, header), two.post(&rotate, json!({})));
        a.is(StatusCode::NO_CONTENT);
        let key = b.is(StatusCode::OK);
        let found = one.get(&headers).await.is(StatusCode::OK);
        assert_eq!(text(&found["headers"], &name), "set", "round {round}");
        let secret = one.get(&format!("{endpoint}/secret")).await.is(StatusCode::OK);
        assert_eq!(secret, key, "round {round}");
    }
}

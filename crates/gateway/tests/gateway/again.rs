//! Sending messages again: resends and recoveries.

use std::time::Duration;

use http::StatusCode;
use postrider_gateway::Settings;
use postrider_model::{Disposition, Next, Trigger};
use serde_json::json;

use crate::deliveries::{outcome, send};
use crate::harness::{Harness, text};

#[tokio::test]
async fn a_resend_is_a_delivery_of_its_own_and_the_same_with_the_same_key() {
    let harness = Harness::with(true, Settings::default()).await;
    harness.acme().await;
    let sent = send(&harness, "a").await;
    let path = format!("/api/v1/app/acme/msg/{}/endpoint/main/resend", text(&sent, "id"));
    for key in ["k1", "k1", "k2"] {
        assert_eq!(
            harness
                .post_with_key(&path, key, json!({}))
                .await
                .is(StatusCode::ACCEPTED),
            json!({})
        );
    }
    let accepted = harness.broker.accepted();
    let made: Vec<_> = accepted
        .iter()
        .map(|accepted| accepted.deliveries[0].id)
        .collect();
    assert_eq!(made.len(), 4);
    assert_eq!(made[1], made[2]);
    assert!(made[0] != made[1] && made[1] != made[3]);
    assert_eq!(accepted[1].trigger, Trigger::Manual);
    let job = harness.broker.jobs()[1].clone();
    assert_eq!(
        (job.trigger, &job.message.payload),
        (Trigger::Manual, &harness.broker.jobs()[0].message.payload)
    );
    harness
        .patch("/api/v1/app/acme/endpoint/main", json!({"paused": true}))
        .await
        .is(StatusCode::OK);
    harness.post(&path, json!({})).await.is(StatusCode::ACCEPTED);
    let last = harness.broker.accepted()[4].deliveries[0].disposition;
    assert!(matches!(last, Disposition::Waiting(_)), "{last:?}");
    harness
        .patch("/api/v1/app/acme/endpoint/main", json!({"disabled": true}))
        .await
        .is(StatusCode::OK);
    harness.post(&path, json!({})).await.is(StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_repeated_resend_that_was_tried_is_not_sent_again() {
    for durable in [true, false] {
        let harness = Harness::with(durable, Settings::default()).await;
        harness.acme().await;
        let sent = send(&harness, "a").await;
        let message = format!("/api/v1/app/acme/msg/{}", text(&sent, "id"));
        let path = format!("{message}/endpoint/main/resend");
        let resend = async |key| {
            let answer = harness.post_with_key(&path, key, json!({})).await;
            answer.is(StatusCode::ACCEPTED);
            harness.broker.jobs().len()
        };
        assert_eq!((resend("k1").await, resend("k2").await), (2, 3));
        outcome(&harness, 1, Some(200), Next::Delivered).await;
        let delay = Duration::from_secs(3600);
        outcome(&harness, 2, Some(500), Next::Retry { delay }).await;
        assert_eq!((resend("k1").await, resend("k2").await), (3, 3), "{durable}");
        assert_eq!(resend("k3").await, 4);
        let content = format!("{message}/content");
        harness.delete(&content).await.is(StatusCode::NO_CONTENT);
        assert_eq!(resend("k1").await, 4, "{durable}");
        let refused = harness.post_with_key(&path, "k4", json!({})).await;
        assert_eq!(refused.code(), "missing_payload");
        harness
            .patch("/api/v1/app/acme/endpoint/main", json!({"disabled": true}))
            .await
            .is(StatusCode::OK);
        assert_eq!(resend("k1").await, 4, "{durable}");
        let refused = harness.post_with_key(&path, "k4", json!({})).await;
        assert_eq!(refused.code(), "endpoint_disabled");
    }
}

#[tokio::test]
async fn a_recovery_is_a_background_task() {
    let harness = Harness::new().await;
    harness.acme().await;
    let input = json!({"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"});
    for (name, task) in [
        ("recover", "endpoint.recover"),
        ("replay-missing", "endpoint.replay"),
    ] {
        let path = format!("/api/v1/app/acme/endpoint/main/{name}");
        let started = harness
            .post_with_key(&path, name, input.clone())
            .await
            .is(StatusCode::ACCEPTED);
        assert_eq!(
            (&started["task"], &started["status"]),
            (&json!(task), &json!("running"))
        );
        let again = harness
            .post_with_key(&path, name, input.clone())
            .await
            .is(StatusCode::ACCEPTED);
        assert_eq!(again["id"], started["id"]);
        let disable =
            |disabled: bool| harness.patch("/api/v1/app/acme/endpoint/main", json!({"disabled": disabled}));
        disable(true).await.is(StatusCode::OK);
        let again = harness.post_with_key(&path, name, input.clone()).await;
        assert_eq!(again.is(StatusCode::ACCEPTED)["id"], started["id"]);
        let refused = harness.post(&path, input.clone()).await;
        assert_eq!(refused.code(), "endpoint_disabled");
        disable(false).await.is(StatusCode::OK);
        let shown = harness
            .get(&format!("/api/v1/background-task/{}", text(&started, "id")))
            .await;
        assert_eq!(
            shown.is(StatusCode::OK)["data"]["since"],
            "2026-01-01T00:00:00.000Z"
        );
    }
}

#[tokio::test]
async fn recoveries_under_way_are_bounded() {
    let harness = Harness::new().await;
    harness.acme().await;
    let path = "/api/v1/app/acme/endpoint/main/recover";
    let input = json!({"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"});
    for n in 0..100 {
        let started = harness.post_with_key(path, &format!("k{n}"), input.clone()).await;
        started.is(StatusCode::ACCEPTED);
    }
    let refused = harness.post_with_key(path, "one more", input.clone()).await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::BAD_REQUEST, "limit_reached")
    );
    let repeated = harness.post_with_key(path, "k0", input).await;
    repeated.is(StatusCode::ACCEPTED);
}

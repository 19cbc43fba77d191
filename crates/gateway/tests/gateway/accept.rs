//! Accepting messages: what 202 promises, and what is refused.

use std::collections::HashSet;
use std::time::Duration;

use axum::body::Body;
use http::{Method, StatusCode};
use postrider_broker::{Health, PublishError, Queue};
use postrider_gateway::Settings;
use postrider_model::{DeferReason, Disposition, Next, Trigger};
use serde_json::json;

use crate::harness::{Fail, Harness, text};

const MSG: &str = "/api/v1/app/acme/msg";

#[tokio::test]
async fn a_payload_goes_out_byte_for_byte() {
    let harness = Harness::with(true, Settings::default()).await;
    harness.acme().await;
    let payload = "{ \"b\":1,\n  \"a\": 1.50, \"\\u0061\":\"x\" }";
    let body = format!("{{\"eventType\":\"user.signup\",\"payload\":{payload}}}");
    let answer = harness.call(Method::POST, MSG, &[], Body::from(body)).await;
    let message = answer.is(StatusCode::ACCEPTED);
    let jobs = harness.broker.jobs();
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].message.payload, payload.as_bytes());
    assert_eq!(jobs[0].message.content_type, "application/json");
    assert_eq!(jobs[0].message.id.to_string(), text(&message, "id"));
    let accepted = harness.broker.accepted();
    assert_eq!(accepted[0].deliveries[0].disposition, Disposition::Queued);
    assert_eq!(accepted[0].deliveries[0].id, jobs[0].delivery);
    assert!(accepted[0].claims.is_empty());
    assert_eq!(
        harness.broker.queues(),
        [Queue::Deliver(jobs[0].endpoint.shard(4))]
    );
}

#[tokio::test]
async fn the_same_key_gives_the_first_answer_and_no_second_message() {
    let harness = Harness::new().await;
    harness.acme().await;
    let body = json!({"eventType": "a", "payload": {"n": 1}});
    let first = harness
        .post_with_key(MSG, "k1", body.clone())
        .await
        .is(StatusCode::ACCEPTED);
    let again = harness
        .post_with_key(MSG, "k1", body)
        .await
        .is(StatusCode::ACCEPTED);
    assert_eq!(first, again);
    assert_eq!(harness.broker.accepted().len(), 1);
    let other = harness
        .post_with_key(MSG, "k1", json!({"eventType": "a", "payload": {"n": 2}}))
        .await;
    assert_eq!(other.code(), "idempotency_key_reused");
    other.is(StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn concurrent_requests_with_the_same_key_make_one_message() {
    let harness = Harness::new().await;
    harness.acme().await;
    let body = json!({"eventType": "a", "payload": {"n": 1}});
    let calls = (0..16).map(|_| harness.post_with_key(MSG, "k1", body.clone()));
    let answers = futures_util::future::join_all(calls).await;
    let ids: std::collections::HashSet<String> = answers
        .into_iter()
        .map(|answer| text(&answer.is(StatusCode::ACCEPTED), "id").to_owned())
        .collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(harness.broker.accepted().len(), 1);
}

#[tokio::test]
async fn embedded_a_key_is_known_after_a_restart() {
    let before = Harness::new().await;
    before.acme().await;
    let body = json!({"eventType": "a", "payload": {}, "eventId": "e1"});
    let first = before
        .post_with_key(MSG, "k1", body.clone())
        .await
        .is(StatusCode::ACCEPTED);
    let after = Harness::over(before.store.clone(), false, Settings::default());
    let again = after
        .post_with_key(MSG, "k1", body.clone())
        .await
        .is(StatusCode::ACCEPTED);
    assert_eq!(first, again);
    after
        .post_with_key(MSG, "k1", json!({"eventType": "b", "payload": {}}))
        .await
        .is(StatusCode::UNPROCESSABLE_ENTITY);
    after
        .post_with_key(MSG, "k2", body)
        .await
        .is(StatusCode::CONFLICT);
    assert_eq!(after.broker.accepted().len(), 0);
    // What was claimed on the way is free again.
    after
        .post_with_key(MSG, "k2", json!({"eventType": "a", "payload": {}}))
        .await
        .is(StatusCode::ACCEPTED);
}

#[tokio::test]
async fn embedded_a_request_that_is_partly_queued_defers_the_rest_and_nothing_twice() {
    let settings = Settings {
        shards: 1,
        ..Settings::default()
    };
    let harness = Harness::with(false, settings).await;
    harness.acme().await;
    *harness.broker.fail.lock() = Some(Fail::JobsAfter(1));
    // So large that a frame takes one of them.
    let message = json!({"eventType": "a", "payload": {"text": "x".repeat(150_000)}});
    let batch = json!({"messages": vec![message; 4]});
    harness
        .post("/api/v1/app/acme/msg/batch", batch)
        .await
        .is(StatusCode::ACCEPTED);
    let queued: Vec<_> = harness.broker.jobs().iter().map(|job| job.delivery).collect();
    let outcomes = harness.broker.outcomes();
    let deferred: Vec<_> = outcomes.iter().map(|outcome| outcome.delivery).collect();
    assert_eq!((queued.len(), deferred.len()), (1, 3));
    let mut found = [queued, deferred].concat();
    found.sort_unstable();
    let accepted = harness.broker.accepted();
    let mut wanted: Vec<_> = accepted.iter().map(|one| one.deliveries[0].id).collect();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn an_event_id_is_taken_once() {
    let harness = Harness::new().await;
    harness.acme().await;
    let body = json!({"eventType": "a", "payload": {}, "eventId": "e1"});
    let first = harness
        .post_with_key(MSG, "k1", body.clone())
        .await
        .is(StatusCode::ACCEPTED);
    harness.message(body.clone()).await.is(StatusCode::CONFLICT);
    // A refused request's key promises nothing: neither the repeat is accepted nor is the key used up.
    harness
        .post_with_key(MSG, "k2", body.clone())
        .await
        .is(StatusCode::CONFLICT);
    harness
        .post_with_key(MSG, "k2", body.clone())
        .await
        .is(StatusCode::CONFLICT);
    harness
        .post_with_key(MSG, "k2", json!({"eventType": "b", "payload": {}}))
        .await
        .is(StatusCode::ACCEPTED);
    assert_eq!(
        harness
            .post_with_key(MSG, "k1", body)
            .await
            .is(StatusCode::ACCEPTED),
        first
    );
    let found = harness.get("/api/v1/app/acme/msg/e1").await.is(StatusCode::OK);
    assert_eq!(found["id"], first["id"]);
}

#[tokio::test]
async fn an_unconfirmed_message_keeps_its_id_when_it_is_sent_again() {
    let harness = Harness::with(true, Settings::default()).await;
    harness.acme().await;
    let body = json!({"eventType": "a", "payload": {}, "eventId": "e1"});
    *harness.broker.fail.lock() = Some(Fail::Jobs(PublishError::Lost));
    let refused = harness.post_with_key(MSG, "k1", body.clone()).await;
    assert_eq!(refused.retry_after(), Some(1));
    refused.is(StatusCode::SERVICE_UNAVAILABLE);
    let out = harness.broker.accepted()[0].message.id.to_string();
    *harness.broker.fail.lock() = None;
    let again = harness
        .post_with_key(MSG, "k1", body)
        .await
        .is(StatusCode::ACCEPTED);
    assert_eq!(text(&again, "id"), out);
    assert_eq!(harness.broker.jobs().len(), 1);
}

#[tokio::test]
async fn a_message_that_surely_was_not_published_gives_its_keys_back() {
    let harness = Harness::with(true, Settings::default()).await;
    harness.acme().await;
    *harness.broker.fail.lock() = Some(Fail::All(PublishError::Down));
    let body = json!({"eventType": "a", "payload": {}, "eventId": "e1"});
    harness
        .message(body.clone())
        .await
        .is(StatusCode::SERVICE_UNAVAILABLE);
    *harness.broker.fail.lock() = None;
    // Another body under the same event id: would be a conflict if the claim had been kept.
    harness
        .message(json!({"eventType": "b", "payload": {}, "eventId": "e1"}))
        .await
        .is(StatusCode::ACCEPTED);
}

#[tokio::test]
async fn nothing_is_accepted_without_the_journal_confirm() {
    for durable in [true, false] {
        let harness = Harness::with(durable, Settings::default()).await;
        harness.acme().await;
        *harness.broker.fail.lock() = Some(Fail::Journal(PublishError::Refused));
        harness
            .message(json!({"eventType": "a", "payload": {}}))
            .await
            .is(StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test]
async fn embedded_a_client_that_hangs_up_leaves_no_record_without_its_jobs() {
    let harness = Harness::new().await;
    harness.acme().await;
    // Cut off at every stage, the wait for the store's commit among them.
    for step in 1..60 {
        let patience = Duration::from_micros(100 * step);
        let request = harness.message(json!({"eventType": "a", "payload": {"step": step}}));
        let _ = tokio::time::timeout(patience, request).await;
    }
    harness.gateway.shutdown().await;
    let deliveries = || {
        harness
            .broker
            .accepted()
            .iter()
            .flat_map(|accepted| accepted.deliveries.clone())
            .map(|delivery| delivery.id)
            .collect::<HashSet<_>>()
    };
    let jobs: HashSet<_> = harness.broker.jobs().iter().map(|job| job.delivery).collect();
    assert!(!jobs.is_empty());
    assert_eq!(jobs, deliveries());
}

#[tokio::test]
async fn embedded_a_full_queue_leaves_the_delivery_in_the_store() {
    let harness = Harness::new().await;
    harness.acme().await;
    *harness.broker.fail.lock() = Some(Fail::Jobs(PublishError::Full));
    harness
        .message(json!({"eventType": "a", "payload": {}}))
        .await
        .is(StatusCode::ACCEPTED);
    let outcomes = harness.broker.outcomes();
    assert_eq!(outcomes.len(), 1);
    let Next::Deferred { reason, delay } = outcomes[0].next else {
        panic!("{:?}", outcomes[0].next)
    };
    assert_eq!((reason, delay.as_secs()), (DeferReason::Queue, 0));
    assert_eq!(
        outcomes[0].delivery,
        harness.broker.accepted()[0].deliveries[0].id
    );
}

#[tokio::test]
async fn a_broker_that_takes_nothing_refuses_before_any_work() {
    let harness = Harness::new().await;
    harness.acme().await;
    for (health, code) in [
        (Health::Down, "broker_unavailable"),
        (Health::Blocked, "broker_blocked"),
    ] {
        harness.broker.health.send_replace(health);
        // The body is not even looked at.
        let answer = harness.call(Method::POST, MSG, &[], Body::from("not json")).await;
        assert_eq!((answer.code(), answer.retry_after()), (code, Some(1)));
        answer.is(StatusCode::SERVICE_UNAVAILABLE);
        harness
            .get("/api/v1/health")
            .await
            .is(StatusCode::SERVICE_UNAVAILABLE);
        let ready = harness
            .get("/health/ready")
            .await
            .is(StatusCode::SERVICE_UNAVAILABLE);
        assert_ne!(ready["broker"], "up");
    }
    harness.broker.health.send_replace(Health::Up);
    harness
        .message(json!({"eventType": "a", "payload": {}}))
        .await
        .is(StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_deep_journal_refuses_messages_until_it_is_shorter() {
    let harness = Harness::with(
        true,
        Settings {
            journal_depth_max: 10,
            ..Settings::default()
        },
    )
    .await;
    harness.acme().await;
    let body = json!({"eventType": "a", "payload": {}});
    for (depth, wanted) in [(11, StatusCode::SERVICE_UNAVAILABLE), (10, StatusCode::ACCEPTED)] {
        harness
            .broker
            .journal_depth
            .store(depth, std::sync::atomic::Ordering::SeqCst);
        let mut last = None;
        for _ in 0..100 {
            let answer = harness.message(body.clone()).await;
            last = Some(answer.status);
            if answer.status == wanted {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(last, Some(wanted));
    }
}

#[tokio::test]
async fn above_its_quota_an_application_gets_429() {
    let harness = Harness::new().await;
    let app = json!({"name": "Slow", "uid": "slow", "throttleRate": 1});
    harness.post("/api/v1/app", app).await.is(StatusCode::CREATED);
    let body = json!({"eventType": "a", "payload": {}});
    harness
        .post("/api/v1/app/slow/msg", body.clone())
        .await
        .is(StatusCode::ACCEPTED);
    let refused = harness.post("/api/v1/app/slow/msg", body.clone()).await;
    assert_eq!((refused.code(), refused.retry_after()), ("rate_limited", Some(1)));
    refused.is(StatusCode::TOO_MANY_REQUESTS);
    harness.acme().await;
    harness.message(body).await.is(StatusCode::ACCEPTED);
}

#[tokio::test]
async fn each_kind_of_endpoint_gets_its_deliveries_its_own_way() {
    for (durable, direct) in [(true, Disposition::Queued), (false, Disposition::Leased)] {
        let harness = Harness::with(durable, Settings::default()).await;
        harness.acme().await;
        let url = "https://example.com/";
        harness
            .endpoint(json!({"url": url, "uid": "paused", "paused": true}))
            .await;
        harness
            .endpoint(json!({"url": url, "uid": "ordered", "ordered": true}))
            .await;
        harness
            .endpoint(json!({"url": url, "uid": "disabled", "disabled": true}))
            .await;
        harness
            .endpoint(json!({"url": url, "uid": "other", "eventTypes": ["b"]}))
            .await;
        harness
            .endpoint(json!({"url": url, "uid": "channel", "channels": ["c"]}))
            .await;
        harness
            .message(json!({"eventType": "a", "payload": {}}))
            .await
            .is(StatusCode::ACCEPTED);
        let accepted = harness.broker.accepted();
        let mut found: Vec<Disposition> = accepted[0].deliveries.iter().map(|new| new.disposition).collect();
        found.sort_by_key(|disposition| format!("{disposition:?}"));
        let mut wanted = vec![
            direct,
            Disposition::Waiting(DeferReason::Paused),
            Disposition::Ordered,
        ];
        wanted.sort_by_key(|disposition| format!("{disposition:?}"));
        assert_eq!(found, wanted);
        assert_eq!(harness.broker.jobs().len(), 1);
        let body = json!({"eventType": "b", "payload": {}, "channels": ["c"]});
        harness.message(body).await.is(StatusCode::ACCEPTED);
        assert_eq!(harness.broker.accepted()[1].deliveries.len(), 5);
    }
}

#[tokio::test]
async fn a_configuration_change_counts_for_the_next_message() {
    let harness = Harness::new().await;
    harness.acme().await;
    let body = json!({"eventType": "a", "payload": {}});
    harness.message(body.clone()).await.is(StatusCode::ACCEPTED);
    harness.endpoint(json!({"url": "https://example.com/2"})).await;
    harness.message(body.clone()).await.is(StatusCode::ACCEPTED);
    harness
        .delete("/api/v1/app/acme/endpoint/main")
        .await
        .is(StatusCode::NO_CONTENT);
    harness.message(body.clone()).await.is(StatusCode::ACCEPTED);
    let counts: Vec<usize> = harness
        .broker
        .accepted()
        .iter()
        .map(|accepted| accepted.deliveries.len())
        .collect();
    assert_eq!(counts, [1, 2, 1]);
    harness
        .delete("/api/v1/app/acme")
        .await
        .is(StatusCode::NO_CONTENT);
    harness.message(body).await.is(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_batch_has_one_result_a_message_and_repeats_the_same() {
    let harness = Harness::new().await;
    harness.acme().await;
    harness
        .message(json!({"eventType": "a", "payload": {}, "eventId": "old"}))
        .await
        .is(StatusCode::ACCEPTED);
    let batch = json!({"messages": [
        {"eventType": "a", "payload": {"n": 0}},
        {"eventType": "not ok", "payload": {}},
        {"eventType": "a", "payload": {}, "eventId": "old"},
        {"eventType": "a", "payload": {}, "eventId": "new"},
        {"eventType": "a", "payload": {"second": true}, "eventId": "new"},
        {"eventType": "a", "payload": []},
    ]});
    let path = "/api/v1/app/acme/msg/batch";
    let first = harness
        .post_with_key(path, "k1", batch.clone())
        .await
        .is(StatusCode::ACCEPTED);
    let statuses: Vec<u64> = first["data"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["status"].as_u64())
        .collect();
    assert_eq!(statuses, [202, 422, 409, 202, 409, 422]);
    assert_eq!(harness.broker.accepted().len(), 3);
    let again = harness
        .post_with_key(path, "k1", batch.clone())
        .await
        .is(StatusCode::ACCEPTED);
    assert_eq!(first, again);
    assert_eq!(harness.broker.accepted().len(), 3);
    let restarted = Harness::over(harness.store.clone(), false, Settings::default());
    let again = restarted
        .post_with_key(path, "k1", batch)
        .await
        .is(StatusCode::ACCEPTED);
    assert_eq!(first, again);
    assert_eq!(restarted.broker.accepted().len(), 0);
}

#[tokio::test]
async fn any_bytes_are_a_message() {
    let harness = Harness::new().await;
    harness.acme().await;
    let bytes: &[u8] = b"<order>\xff\0</order>";
    let path = "/api/v1/app/acme/msg/raw?eventType=order&eventId=o-1&channels=x,y";
    let headers = [("content-type", "text/xml; charset=latin1")];
    let answer = harness
        .call(Method::POST, path, &headers, Body::from(bytes))
        .await
        .is(StatusCode::ACCEPTED);
    let message = harness.broker.jobs()[0].message.clone();
    assert_eq!(message.payload, bytes);
    assert_eq!(message.content_type, "text/xml; charset=latin1");
    assert_eq!(message.channels, ["x", "y"]);
    let shown = harness
        .get(&format!("/api/v1/app/acme/msg/{}", text(&answer, "id")))
        .await
        .is(StatusCode::OK);
    assert_eq!(shown["payload"], json!({}));
    assert_eq!(shown["contentType"], "text/xml; charset=latin1");
    assert_eq!(shown["payloadBase64"], "PG9yZGVyPv8APC9vcmRlcj4=");
}

#[tokio::test]
async fn a_client_librarys_raw_payload_is_sent_as_it_is() {
    let harness = Harness::new().await;
    harness.acme().await;
    let params =
        json!({"rawPayload": "a=b&c", "headers": {"content-type": "application/x-www-form-urlencoded"}});
    let body = json!({"eventType": "a", "payload": {}, "transformationsParams": params});
    harness.message(body).await.is(StatusCode::ACCEPTED);
    let message = harness.broker.jobs()[0].message.clone();
    assert_eq!(message.payload, b"a=b&c".as_slice());
    assert_eq!(message.content_type, "application/x-www-form-urlencoded");
}

#[tokio::test]
async fn an_application_can_come_along_with_its_first_message() {
    let harness = Harness::new().await;
    let body = json!({"eventType": "a", "payload": {}, "application": {"name": "New"}});
    harness
        .post("/api/v1/app/new/msg", body.clone())
        .await
        .is(StatusCode::ACCEPTED);
    harness
        .post("/api/v1/app/new/msg", body)
        .await
        .is(StatusCode::ACCEPTED);
    let app = harness.get("/api/v1/app/new").await.is(StatusCode::OK);
    assert_eq!(app["name"], "New");
}

#[tokio::test]
async fn a_message_goes_to_so_many_endpoints_and_no_more() {
    let settings = Settings {
        fan_out_max: 2,
        request_fan_out_max: 3,
        ..Settings::default()
    };
    let harness = Harness::with(false, settings).await;
    harness.acme().await;
    harness.endpoint(json!({"url": "https://example.com/2"})).await;
    let body = json!({"eventType": "a", "payload": {}, "eventId": "e"});
    let batch = json!({"messages": [body.clone(), {"eventType": "a", "payload": {}}]});
    let refused = harness.post("/api/v1/app/acme/msg/batch", batch).await;
    assert_eq!(refused.code(), "fan_out_too_large");
    harness
        .endpoint(json!({"url": "https://example.com/3", "uid": "third"}))
        .await;
    let refused = harness.message(body.clone()).await;
    assert_eq!(refused.code(), "fan_out_too_large");
    refused.is(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(harness.broker.accepted().is_empty());
    harness
        .delete("/api/v1/app/acme/endpoint/third")
        .await
        .is(StatusCode::NO_CONTENT);
    // Its event id is free.
    harness.message(body).await.is(StatusCode::ACCEPTED);
}

#[tokio::test]
async fn an_example_goes_to_one_endpoint_whatever_it_subscribes_to() {
    let harness = Harness::new().await;
    harness.acme().await;
    let only = harness
        .endpoint(json!({"url": "https://example.com/2", "uid": "only", "eventTypes": ["x"]}))
        .await;
    let schemas = json!({"1": {"examples": [{"old": 1}]}, "2": {"examples": [{"user": "ann"}]}});
    let event_type = json!({"name": "user.signup", "description": "", "schemas": schemas});
    harness
        .post("/api/v1/event-type", event_type)
        .await
        .is(StatusCode::CREATED);
    let path = "/api/v1/app/acme/endpoint/only/send-example";
    let sent = harness
        .post(path, json!({"eventType": "user.signup"}))
        .await
        .is(StatusCode::OK);
    assert_eq!(sent["payload"], json!({"user": "ann"}));
    let accepted = harness.broker.accepted();
    assert_eq!(accepted[0].trigger, Trigger::Scheduled);
    assert_eq!(accepted[0].deliveries.len(), 1);
    assert_eq!(accepted[0].deliveries[0].endpoint.to_string(), text(&only, "id"));
    let sent = harness
        .post(path, json!({"eventType": "unknown"}))
        .await
        .is(StatusCode::OK);
    assert_eq!(sent["payload"]["example"], true);
}

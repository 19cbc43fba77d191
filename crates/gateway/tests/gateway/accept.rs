//! Accepting messages: what 202 promises, and what goes to whom.

use axum::body::Body;
use http::{Method, StatusCode};
use postrider_broker::Queue;
use postrider_gateway::Settings;
use postrider_model::{DeferReason, Disposition, Trigger, UnixMillis};
use postrider_store::EndpointRef;
use serde_json::json;

use crate::harness::{Harness, text};

const MSG: &str = "/api/v1/app/acme/msg";

#[tokio::test]
async fn a_payload_goes_out_byte_for_byte() {
    let harness = Harness::with(true, Settings::default()).await;
    harness.acme().await;
    let payload = "{ \"b\":1,\n  \"a\": 1.50, \"\\u0061\":\"x\" }";
    let body = format!("{{\"eventType\":\"user.signup\",\"payload\":{payload}}}");
    let answer = harness.call(Method::POST, MSG, &[], Body::from(body)).await;
    let shown = format!("\"payload\":{payload}");
    assert!(
        answer.text.contains(&shown),
        "the answer has it too: {}",
        answer.text
    );
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
    let queues = harness.broker.queues();
    assert!(matches!(queues[..], [Queue::Deliver(0..4)]), "{queues:?}");
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
    let body = json!({"eventType": "a", "payload": {"not": "sent"}, "transformationsParams": params});
    let shown = harness.message(body).await.is(StatusCode::ACCEPTED);
    assert_eq!(shown["payload"], json!({}));
    assert_eq!(shown["payloadBase64"], "YT1iJmM=");
    assert_eq!(shown["contentType"], "application/x-www-form-urlencoded");
    let message = harness.broker.jobs()[0].message.clone();
    assert_eq!(message.payload, b"a=b&c".as_slice());
    assert_eq!(message.content_type, "application/x-www-form-urlencoded");
}

#[tokio::test]
async fn an_answer_shows_what_is_sent_or_nothing() {
    let harness = Harness::new().await;
    harness.acme().await;
    let params = json!({"rawPayload": "{\"is\": \"sent\"}"});
    let body = json!({"eventType": "a", "payload": {"not": "sent"}, "transformationsParams": params});
    let shown = harness.message(body.clone()).await.is(StatusCode::ACCEPTED);
    assert_eq!(shown["payload"], json!({"is": "sent"}));
    assert_eq!(shown["contentType"], serde_json::Value::Null);
    let path = format!("{MSG}?with_content=false");
    for body in [body, json!({"eventType": "a", "payload": {"is": "sent"}})] {
        let shown = harness.post(&path, body).await.is(StatusCode::ACCEPTED);
        assert_eq!(shown["payload"], json!({}));
        assert_eq!(shown["payloadBase64"], serde_json::Value::Null);
    }
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
async fn an_applications_endpoints_take_so_much_memory_and_no_more() {
    const PATH: &str = "/api/v1/app/acme/endpoint";
    let harness = Harness::new().await;
    let app = harness.acme().await;
    for uid in ["small", "large"] {
        harness
            .endpoint(json!({"url": "https://example.com/", "uid": uid}))
            .await;
    }
    // More than the interface takes, as if made of many.
    let large = EndpointRef::Uid("large".into());
    let mut endpoint = harness.store.endpoint(app, &large).await.unwrap().unwrap();
    let was = endpoint.updated_at;
    endpoint.description = "d".repeat(64 * 1024 * 1024);
    endpoint.updated_at = UnixMillis(was.0 + 1);
    harness.store.update_endpoint(&endpoint, was).await.unwrap();

    let another = json!({"url": "https://example.com/3"});
    let longer = json!({"metadata": {"key": "value"}});
    let headers = json!({"headers": {"x-key": "value"}});
    let (small, large) = (format!("{PATH}/small"), format!("{PATH}/large"));
    for refused in [
        harness.post(PATH, another.clone()).await,
        harness.patch(&small, longer.clone()).await,
        harness.patch(&format!("{small}/headers"), headers.clone()).await,
    ] {
        assert_eq!(refused.code(), "limit_reached");
        refused.is(StatusCode::BAD_REQUEST);
    }
    let shorter = json!({"description": ""});
    harness.patch(&large, shorter).await.is(StatusCode::OK);
    harness.patch(&small, longer).await.is(StatusCode::OK);
    let changed = harness.patch(&format!("{small}/headers"), headers).await;
    changed.is(StatusCode::NO_CONTENT);
    harness.post(PATH, another).await.is(StatusCode::CREATED);
}

#[tokio::test]
async fn an_application_has_so_many_endpoints_and_no_more() {
    let settings = Settings {
        endpoints_max: 2,
        ..Settings::default()
    };
    let harness = Harness::with(false, settings).await;
    harness.acme().await;
    let another = json!({"url": "https://example.com/2", "uid": "second"});
    harness.endpoint(another.clone()).await;
    let third = json!({"url": "https://example.com/3"});
    // No message was sent, so nothing is cached: the store is asked.
    let refused = harness.post("/api/v1/app/acme/endpoint", third.clone()).await;
    assert_eq!(refused.code(), "limit_reached");
    refused.is(StatusCode::BAD_REQUEST);
    let refused = harness
        .put("/api/v1/app/acme/endpoint/third", third.clone())
        .await;
    assert_eq!(refused.code(), "limit_reached");
    harness
        .put("/api/v1/app/acme/endpoint/second", another)
        .await
        .is(StatusCode::OK);
    harness
        .delete("/api/v1/app/acme/endpoint/second")
        .await
        .is(StatusCode::NO_CONTENT);
    harness
        .post("/api/v1/app/acme/endpoint", third)
        .await
        .is(StatusCode::CREATED);
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
    let schemas =
        json!({"9": {"examples": [{"old": 1}]}, "10": {"examples": [{"user": "ann"}, {"user": "bo"}]}});
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
    let second = harness
        .post(path, json!({"eventType": "user.signup", "exampleIndex": 1}))
        .await
        .is(StatusCode::OK);
    assert_eq!(second["payload"], json!({"user": "bo"}));
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

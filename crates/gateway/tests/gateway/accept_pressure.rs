//! What is refused because something behind the gateway is full, away or over its quota, and what is not lost by it.

use std::collections::HashSet;
use std::time::Duration;

use axum::body::Body;
use http::{Method, StatusCode};
use postrider_broker::{GatherSettings, Health, PublishError};
use postrider_gateway::Settings;
use postrider_model::{DeferReason, Next};
use serde_json::json;

use crate::harness::{Fail, Harness, Lanes};

const MSG: &str = "/api/v1/app/acme/msg";

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
async fn what_a_client_that_hung_up_claimed_is_finished_or_given_back() {
    const SOON: Duration = Duration::from_millis(50);
    const LATER: Duration = Duration::from_millis(500);
    let hang_up = async |harness: &Harness, key| {
        let body = json!({"eventType": "a", "payload": {}});
        let request = harness.post_with_key(MSG, key, body);
        assert!(
            tokio::time::timeout(SOON, request).await.is_err(),
            "no answer yet"
        );
    };
    for durable in [true, false] {
        let harness = Harness::with(durable, Settings::default()).await;
        harness.acme().await;
        *harness.broker.fail.lock() = Some(Fail::Slow(LATER));
        hang_up(&harness, "finished").await;
        let body = json!({"eventType": "a", "payload": {}});
        let repeat = harness.post_with_key(MSG, "finished", body).await;
        repeat.is(StatusCode::ACCEPTED);
        assert_eq!(harness.broker.accepted().len(), 1, "the repeat made nothing");
        *harness.broker.fail.lock() = Some(Fail::Late(LATER, PublishError::Down));
        hang_up(&harness, "given back").await;
        *harness.broker.fail.lock() = None;
        // Another request may have the key as soon as it is given back.
        let given_back = tokio::time::timeout(Duration::from_secs(30), async {
            let other = || json!({"eventType": "b", "payload": {}});
            while harness.post_with_key(MSG, "given back", other()).await.status != StatusCode::ACCEPTED {
                tokio::time::sleep(SOON).await;
            }
        });
        given_back.await.expect("it is given back");
    }
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

/// A message on record whose jobs never went out would show deliveries that wait for ever, and jobs without a record would
/// deliver what was refused.
#[tokio::test]
async fn what_finds_no_room_on_its_way_to_the_queues_is_not_published() {
    let no_room = GatherSettings {
        queue_items: 0,
        ..GatherSettings::default()
    };
    let for_jobs = Lanes {
        jobs: no_room,
        ..Lanes::default()
    };
    let for_records = Lanes {
        journal: no_room,
        ..Lanes::default()
    };
    for lanes in [for_jobs, for_records] {
        let harness = Harness::with_lanes(lanes, true, Settings::default()).await;
        harness.acme().await;
        let body = json!({"eventType": "a", "payload": {}});
        let refused = harness.post_with_key(MSG, "key", body).await;
        assert_eq!((refused.code(), refused.retry_after()), ("overloaded", Some(1)));
        refused.is(StatusCode::SERVICE_UNAVAILABLE);
        assert!(harness.broker.accepted().is_empty(), "nothing is on record");
        assert!(harness.broker.jobs().is_empty(), "nothing is delivered");
        // Its key is free for another.
        let other = json!({"eventType": "b", "payload": {}});
        let again = harness.post_with_key(MSG, "key", other).await;
        assert_eq!(again.code(), "overloaded");
    }
}

#[tokio::test]
async fn what_finds_room_in_part_is_not_published_and_holds_no_room() {
    let settings = Settings::default();
    let one_each = Lanes {
        jobs: GatherSettings {
            max_items: 1,
            queue_items: 1,
            ..GatherSettings::default()
        },
        ..Lanes::default()
    };
    let shards = usize::from(settings.shards);
    let harness = Harness::with_lanes(one_each, true, settings).await;
    harness.acme().await;
    let batch = |messages: usize| {
        let message = json!({"eventType": "a", "payload": {}});
        harness.post(
            "/api/v1/app/acme/msg/batch",
            json!({"messages": vec![message; messages]}),
        )
    };
    let refused = batch(shards + 1).await;
    assert_eq!(refused.code(), "overloaded");
    refused.is(StatusCode::SERVICE_UNAVAILABLE);
    assert!(harness.broker.accepted().is_empty(), "nothing is on record");
    assert!(harness.broker.jobs().is_empty(), "nothing is delivered");
    batch(shards).await.is(StatusCode::ACCEPTED);
    assert_eq!(harness.broker.jobs().len(), shards);
}

/// Where nobody subscribes there is only the record, and when nothing of that is out the key is free for another.
#[tokio::test]
async fn what_nobody_gets_gives_its_key_back_too() {
    let harness = Harness::with(true, Settings::default()).await;
    let app = json!({"name": "Nobody", "uid": "nobody"});
    harness.post("/api/v1/app", app).await.is(StatusCode::CREATED);
    let message = async |event_type: &str| {
        let body = json!({"eventType": event_type, "payload": {}});
        harness.post_with_key("/api/v1/app/nobody/msg", "key", body).await
    };
    *harness.broker.fail.lock() = Some(Fail::All(PublishError::Down));
    message("a").await.is(StatusCode::SERVICE_UNAVAILABLE);
    *harness.broker.fail.lock() = None;
    message("b").await.is(StatusCode::ACCEPTED);
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
    let path = "/api/v1/app/slow/msg";
    let first = harness.post_with_key(path, "k", body.clone()).await;
    let first = first.is(StatusCode::ACCEPTED);
    let refused = harness.post(path, body.clone()).await;
    assert_eq!((refused.code(), refused.retry_after()), ("rate_limited", Some(1)));
    refused.is(StatusCode::TOO_MANY_REQUESTS);
    let repeated = harness.post_with_key(path, "k", body.clone()).await;
    assert_eq!(
        repeated.is(StatusCode::ACCEPTED)["id"],
        first["id"],
        "it was accepted"
    );
    harness.acme().await;
    harness.message(body).await.is(StatusCode::ACCEPTED);
}

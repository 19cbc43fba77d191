//! Sending again: a key or an event id makes one message, whatever became of the first request.

use std::collections::HashSet;
use std::time::Duration;

use http::StatusCode;
use postrider_broker::PublishError;
use postrider_gateway::Settings;
use postrider_limits::{AdmitRequest, ClaimEnd, ClaimRequest, Settlement};
use postrider_model::{AppId, MessageId};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::{Fail, Harness, text};

const MSG: &str = "/api/v1/app/acme/msg";
const BATCH: &str = "/api/v1/app/acme/msg/batch";

/// A message with this event id.
fn event(id: &str) -> Value {
    json!({"eventType": "a", "payload": {}, "eventId": id})
}

/// The ids of all messages whose records were published, each as often as that.
fn ids(harness: &Harness) -> Vec<MessageId> {
    let accepted = harness.broker.accepted();
    accepted.iter().map(|made| made.message.id).collect()
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
async fn embedded_a_batch_is_known_after_a_restart_whose_event_ids_alone_the_limits_know() {
    let before = Harness::new().await;
    let app = before.acme().await;
    let batch = json!({"messages": [event("e1"), event("e2")]});
    let first = before.post_with_key(BATCH, "k1", batch.clone()).await;
    let first = first.is(StatusCode::ACCEPTED);
    let after = Harness::over(before.store.clone(), false, Settings::default());
    let known: Vec<ClaimRequest> = ids(&before)
        .iter()
        .zip(["e1", "e2"])
        .map(|(id, event_id)| ClaimRequest {
            key: event_id_hash(app, event_id),
            resource: *id.as_bytes(),
            fingerprint: [7; 32],
            ttl: Duration::from_secs(3_600),
            pending_ttl: Duration::from_secs(5),
        })
        .collect();
    let finished: Vec<Settlement> = known
        .iter()
        .map(|claim| Settlement {
            app,
            key: claim.key,
            resource: claim.resource,
            end: ClaimEnd::Finished,
        })
        .collect();
    let request = AdmitRequest {
        app,
        messages: 0,
        quota: None,
        claims: known,
    };
    after.limits.admit(&[request]).await.expect("claims");
    after.limits.settle(&finished).await.expect("settled");
    let again = after.post_with_key(BATCH, "k1", batch.clone()).await;
    assert_eq!(again.is(StatusCode::ACCEPTED), first);
    let other = after.post_with_key(BATCH, "k2", batch).await;
    let other = other.is(StatusCode::ACCEPTED);
    let statuses = other["data"].as_array().unwrap().iter().map(|one| &one["status"]);
    assert!(statuses.eq([409, 409].iter()), "{other}");
}

/// As the gateway makes it: SHA-256 over parts, each with its length.
fn event_id_hash(app: AppId, event_id: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [b"event".as_slice(), app.as_bytes(), event_id.as_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[tokio::test]
async fn embedded_a_key_is_known_when_the_limits_have_forgotten_it() {
    /// Twice what the limits keep of one application.
    const OTHERS: u32 = 1 << 19;
    let harness = Harness::new().await;
    let app = harness.acme().await;
    let send = async |number: usize| {
        let body = json!({"eventType": "a", "payload": {"n": number}, "eventId": format!("e{number}")});
        let made = harness.post_with_key(MSG, &format!("k{number}"), body).await;
        text(&made.is(StatusCode::ACCEPTED), "id").to_owned()
    };
    let mut first = Vec::new();
    for number in 0..20 {
        first.push(send(number).await);
    }
    for others in (0..OTHERS).collect::<Vec<_>>().chunks(1_024) {
        harness
            .limits
            .admit(&[claims(app, others)])
            .await
            .expect("claims");
    }
    // Of some both the key and the event id are forgotten, of some one of them, of some neither: nobody may notice.
    for (number, first) in first.iter().enumerate() {
        let event_id = format!("e{number}");
        let other = harness
            .post_with_key(MSG, &format!("k{number}"), event(&event_id))
            .await;
        other.is(StatusCode::UNPROCESSABLE_ENTITY);
        let other = harness.post_with_key(MSG, "new", event(&event_id)).await;
        other.is(StatusCode::CONFLICT);
        assert_eq!(send(number).await, *first, "{number}");
    }
    let batch = json!({"messages": [event("e0"), event("e1"), event("e20")]});
    let answer = harness.post_with_key(BATCH, "batch", batch).await;
    let made = answer.is(StatusCode::ACCEPTED);
    let statuses = made["data"].as_array().unwrap().iter().map(|one| &one["status"]);
    assert!(statuses.eq([409, 409, 202].iter()), "{made}");
    assert_eq!(ids(&harness).len(), first.len() + 1);
}

/// A request for these claims.
fn claims(app: AppId, numbers: &[u32]) -> AdmitRequest {
    let claim = |number: &u32| {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        ClaimRequest {
            key,
            resource: [7; 16],
            fingerprint: [7; 32],
            ttl: Duration::from_secs(3_600),
            pending_ttl: Duration::from_secs(5),
        }
    };
    AdmitRequest {
        app,
        messages: 0,
        quota: None,
        claims: numbers.iter().map(claim).collect(),
    }
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
    harness.post(BATCH, batch).await.is(StatusCode::ACCEPTED);
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
async fn an_unconfirmed_message_keeps_its_id_when_a_repeat_surely_was_not_published() {
    let harness = Harness::with(true, Settings::default()).await;
    harness.acme().await;
    let body = json!({"eventType": "a", "payload": {}, "eventId": "e1"});
    let fails = async |fail| {
        *harness.broker.fail.lock() = Some(fail);
        let refused = harness.post_with_key(MSG, "k1", body.clone()).await;
        refused.is(StatusCode::SERVICE_UNAVAILABLE);
    };
    fails(Fail::Jobs(PublishError::Lost)).await;
    let out = harness.broker.accepted()[0].message.id.to_string();
    // The repeat takes over and gets nothing out. What the first one got out is out all the same.
    fails(Fail::All(PublishError::Down)).await;
    *harness.broker.fail.lock() = None;
    let again = harness.post_with_key(MSG, "k1", body.clone()).await;
    assert_eq!(text(&again.is(StatusCode::ACCEPTED), "id"), out);
}

#[tokio::test]
async fn a_request_that_fails_late_leaves_the_claims_to_the_repeat_that_took_over() {
    let harness = Harness::with(true, Settings::default()).await;
    harness.acme().await;
    let body = json!({"eventType": "a", "payload": {}});
    let send = async || harness.post_with_key(MSG, "k1", body.clone()).await;
    let seconds = Duration::from_secs;
    *harness.broker.fail.lock() = Some(Fail::Late(seconds(7), PublishError::Down));
    let first = send();
    let repeat = async {
        tokio::time::sleep(seconds(1)).await;
        // It takes over after five seconds, and the record is out two seconds before the first request ends.
        *harness.broker.fail.lock() = Some(Fail::Jobs(PublishError::Lost));
        send().await
    };
    for refused in <[_; 2]>::from(tokio::join!(first, repeat)) {
        refused.is(StatusCode::SERVICE_UNAVAILABLE);
    }
    let out = harness.broker.accepted()[0].message.id.to_string();
    *harness.broker.fail.lock() = None;
    assert_eq!(text(&send().await.is(StatusCode::ACCEPTED), "id"), out);
}

#[tokio::test]
async fn a_batch_that_took_an_event_over_makes_it_when_it_is_sent_again() {
    let harness = Harness::with(true, Settings::default()).await;
    harness.acme().await;
    let batch = json!({"messages": [event("e1"), event("e2")]});
    *harness.broker.fail.lock() = Some(Fail::Jobs(PublishError::Lost));
    harness
        .message(event("e1"))
        .await
        .is(StatusCode::SERVICE_UNAVAILABLE);
    let refused = harness.post_with_key(BATCH, "k1", batch.clone()).await;
    refused.is(StatusCode::SERVICE_UNAVAILABLE);
    let out = ids(&harness);
    assert_eq!((out.len(), out[0]), (3, out[1]), "e1 twice, under one id");
    *harness.broker.fail.lock() = None;
    let made = harness
        .post_with_key(BATCH, "k1", batch)
        .await
        .is(StatusCode::ACCEPTED);
    let statuses = made["data"].as_array().unwrap().iter().map(|one| &one["status"]);
    assert!(statuses.eq([202, 202].iter()), "{made}");
    let made = HashSet::<MessageId>::from_iter(ids(&harness));
    assert_eq!(made, HashSet::from_iter(out), "the same two messages");
}

#[tokio::test]
async fn a_batch_keeps_its_ids_when_a_repeat_surely_was_not_published() {
    let harness = Harness::with(true, Settings::default()).await;
    harness.acme().await;
    let batch = json!({"messages": [event("e1"), event("e2")]});
    *harness.broker.fail.lock() = Some(Fail::Jobs(PublishError::Lost));
    let refused = harness.post(BATCH, batch.clone()).await;
    refused.is(StatusCode::SERVICE_UNAVAILABLE);
    let out = ids(&harness);
    *harness.broker.fail.lock() = Some(Fail::All(PublishError::Down));
    let refused = harness.post(BATCH, batch.clone()).await;
    refused.is(StatusCode::SERVICE_UNAVAILABLE);
    *harness.broker.fail.lock() = None;
    harness.post(BATCH, batch).await.is(StatusCode::ACCEPTED);
    let made = HashSet::<MessageId>::from_iter(ids(&harness));
    assert_eq!(made, HashSet::from_iter(out), "the same two messages");
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
async fn no_message_is_made_in_another_application_than_its_key() {
    let one = Harness::new().await;
    let app = one.acme().await;
    let two = Harness::over(one.store.clone(), false, Settings::default());
    two.until_ready().await;
    let path = "/api/v1/app/acme/msg";
    let body = json!({"eventType": "a", "payload": {}});
    // Until it is cached.
    one.message(body.clone()).await.is(StatusCode::ACCEPTED);
    two.patch(&format!("/api/v1/app/{app}"), json!({"uid": "moved"}))
        .await
        .is(StatusCode::OK);
    let other = two.put("/api/v1/app/acme", json!({"name": "Other"})).await;
    let other = other.is(StatusCode::CREATED)["id"].clone();
    // The request is the first to hear of a newer version.
    one.limits.publish_version(app, 1_000_000).await.expect("told");
    let moved = one.post_with_key(path, "k", body.clone()).await;
    assert_eq!(
        (moved.status, moved.code()),
        (StatusCode::SERVICE_UNAVAILABLE, "changed_meanwhile")
    );
    let again = one.post_with_key(path, "k", body.clone()).await;
    again.is(StatusCode::ACCEPTED);
    let made = one.broker.accepted();
    let apps: Vec<String> = made
        .iter()
        .map(|accepted| accepted.message.app.to_string())
        .collect();
    assert_eq!(json!(apps), json!([app.to_string(), other]));
    let elsewhere = json!({"eventType": "b", "payload": {}});
    one.post_with_key("/api/v1/app/moved/msg", "k", elsewhere)
        .await
        .is(StatusCode::ACCEPTED);
}

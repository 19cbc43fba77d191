//! Reading what became of messages.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use postrider_gateway::Settings;
use postrider_model::{
    Attempt, AttemptClass, AttemptId, CancelReason, Next, Outcome, Record, Trigger, UnixMillis,
};
use serde_json::{Value, json};

use crate::harness::{Harness, text};

/// Records an outcome of the `index`-th accepted message's first delivery.
pub(crate) async fn outcome(
    harness: &Harness,
    index: usize,
    status: Option<u16>,
    next: Next,
) -> Option<AttemptId> {
    outcome_of(harness, index, 0, status, next).await
}

async fn outcome_of(
    harness: &Harness,
    index: usize,
    delivery: usize,
    status: Option<u16>,
    next: Next,
) -> Option<AttemptId> {
    let accepted = harness.broker.accepted()[index].clone();
    let delivery = accepted.deliveries[delivery];
    let now = UnixMillis::now();
    let attempt = status.map(|status| Attempt {
        id: AttemptId::generate(now, &mut rand::rng()),
        started_at: now,
        duration: Duration::from_millis(12),
        class: if status == 200 {
            AttemptClass::Success
        } else {
            AttemptClass::Status
        },
        status,
        response: Bytes::from_static(b"answer"),
        url: "https://example.com/hook".to_owned(),
    });
    let id = attempt.as_ref().map(|attempt| attempt.id);
    let outcome = Outcome {
        delivery: delivery.id,
        message: accepted.message.id,
        endpoint: delivery.endpoint,
        app: accepted.message.app,
        run: 0,
        attempts: u32::from(attempt.is_some()),
        trigger: Trigger::Scheduled,
        at: now,
        attempt,
        next,
    };
    harness
        .store
        .record(&[Record::Outcome(Box::new(outcome))])
        .await
        .expect("recorded");
    id
}

pub(crate) async fn send(harness: &Harness, event_type: &str) -> Value {
    let input = json!({"eventType": event_type, "payload": {"type": event_type}});
    harness.message(input).await.is(StatusCode::ACCEPTED)
}

fn ids(list: &Value) -> Vec<&str> {
    list["data"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| text(one, "id"))
        .collect()
}

async fn four_fates(harness: &Harness) -> Vec<Value> {
    harness.acme().await;
    let mut sent = Vec::new();
    for name in ["delivered", "retrying", "exhausted", "cancelled", "pending"] {
        sent.push(send(harness, name).await);
    }
    outcome(harness, 0, Some(200), Next::Delivered).await;
    outcome(
        harness,
        1,
        Some(500),
        Next::Retry {
            delay: Duration::from_secs(60),
        },
    )
    .await;
    outcome(harness, 2, Some(404), Next::Exhausted { gone: false }).await;
    outcome(harness, 3, None, Next::Cancelled(CancelReason::PayloadExpunged)).await;
    sent
}

#[tokio::test]
async fn lists_show_how_each_delivery_stands() {
    let harness = Harness::new().await;
    let sent = four_fates(&harness).await;
    let path = "/api/v1/app/acme/endpoint/main/msg";
    let list = harness
        .get(&format!("{path}?expanded_statuses=true"))
        .await
        .is(StatusCode::OK);
    let shown: Vec<(&str, u64)> = list["data"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| (text(one, "statusText"), one["status"].as_u64().unwrap_or(99)))
        .collect();
    assert_eq!(
        shown,
        [
            ("pending", 1),
            ("canceled", 4),
            ("fail", 2),
            ("sending", 3),
            ("success", 0)
        ]
    );
    assert!(list["data"][3]["nextAttempt"].is_string());
    let failed = harness.get(&format!("{path}?status=2")).await.is(StatusCode::OK);
    assert_eq!(ids(&failed), [text(&sent[3], "id"), text(&sent[2], "id")]);
    let typed = harness
        .get(&format!(
            "{path}?event_types=retrying,delivered&with_content=false"
        ))
        .await
        .is(StatusCode::OK);
    assert_eq!(ids(&typed), [text(&sent[1], "id"), text(&sent[0], "id")]);
    assert_eq!(typed["data"][0]["payload"], json!({}));
    let typed = harness
        .get(&format!("{path}?event_types[]=retrying&event_types[]=delivered"))
        .await
        .is(StatusCode::OK);
    assert_eq!(typed["data"].as_array().map(Vec::len), Some(2));
    let stats = harness
        .get("/api/v1/app/acme/endpoint/main/stats")
        .await
        .is(StatusCode::OK);
    assert_eq!(
        stats,
        json!({"success": 1, "pending": 1, "sending": 1, "fail": 1, "canceled": 1})
    );
}

/// Two messages to two endpoints, the first of them twice by hand to `main` again: failed, delivered, pending.
async fn resent(harness: &Harness) -> Value {
    harness.acme().await;
    harness
        .endpoint(json!({"url": "https://example.com/2", "uid": "other"}))
        .await;
    let first = send(harness, "first").await;
    send(harness, "second").await;
    let resend = format!("/api/v1/app/acme/msg/{}/endpoint/main/resend", text(&first, "id"));
    for key in ["k1", "k2"] {
        harness
            .post_with_key(&resend, key, json!({}))
            .await
            .is(StatusCode::ACCEPTED);
    }
    let endpoint = harness
        .get("/api/v1/app/acme/endpoint/main")
        .await
        .is(StatusCode::OK);
    let to_main = |accepted: &postrider_model::Accepted| {
        let found = accepted
            .deliveries
            .iter()
            .position(|one| one.endpoint.to_string() == text(&endpoint, "id"));
        found.expect("a delivery to main")
    };
    let accepted = harness.broker.accepted();
    let gone = Next::Exhausted { gone: false };
    outcome_of(harness, 0, to_main(&accepted[0]), Some(404), gone).await;
    outcome_of(harness, 2, 0, Some(200), Next::Delivered).await;
    first
}

/// Walks a list in pages of one to its end and back to its start: what each page showed, in the list's order.
async fn walk(harness: &Harness, path: &str) -> [Vec<(String, String)>; 2] {
    let mut ways = [vec![], vec![]];
    let mut next = path.to_owned();
    for (way, name) in ["iterator", "prevIterator"].into_iter().enumerate() {
        for _ in 0..20 {
            let page = harness.get(&next).await.is(StatusCode::OK);
            let shown = page["data"].as_array().into_iter().flatten();
            ways[way]
                .extend(shown.map(|one| (text(one, "id").to_owned(), text(one, "statusText").to_owned())));
            if page["done"] == json!(true) {
                let start = text(&page, "prevIterator");
                next = format!("{path}&iterator={start}");
                break;
            }
            next = format!("{path}&iterator={}", text(&page, name));
        }
    }
    ways[1].reverse();
    ways
}

#[tokio::test]
async fn pages_of_one_show_a_message_once_for_each_of_its_deliveries() {
    let harness = Harness::new().await;
    let first = resent(&harness).await;
    let path = "/api/v1/app/acme/endpoint/main/msg";
    let [forth, back] = walk(&harness, &format!("{path}?limit=1")).await;
    let mut of_first: Vec<&str> = forth[1..].iter().map(|(_, status)| status.as_str()).collect();
    of_first.sort_unstable();
    assert_eq!(of_first, ["fail", "pending", "success"], "{forth:?}");
    assert!(
        forth[1..].iter().all(|(id, _)| id == text(&first, "id")),
        "{forth:?}"
    );
    assert_eq!(back, forth[..3], "the page before the last one, and on");
    let all = harness.get(path).await.is(StatusCode::OK);
    let all: Vec<&str> = all["data"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| text(one, "statusText"))
        .collect();
    assert_eq!(
        all,
        forth
            .iter()
            .map(|(_, status)| status.as_str())
            .collect::<Vec<_>>()
    );
    let of_another_list = format!("{path}?iterator={}", text(&first, "id"));
    harness
        .get(&of_another_list)
        .await
        .is(StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn pages_of_one_show_an_endpoint_once_and_as_its_best_delivery() {
    let harness = Harness::new().await;
    let first = resent(&harness).await;
    let path = format!("/api/v1/app/acme/msg/{}/endpoint", text(&first, "id"));
    let all = harness.get(&path).await.is(StatusCode::OK);
    let mut shown: Vec<(&str, &str)> = all["data"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| (text(one, "uid"), text(one, "statusText")))
        .collect();
    shown.sort_unstable();
    assert_eq!(shown, [("main", "success"), ("other", "pending")]);
    let delivered = harness.get(&format!("{path}?status=0")).await.is(StatusCode::OK);
    assert_eq!(delivered["data"].as_array().map(Vec::len), Some(1));
    assert_eq!(delivered["data"][0]["uid"], "main");
    for order in ["ascending", "descending"] {
        let [forth, back] = walk(&harness, &format!("{path}?limit=1&order={order}")).await;
        assert_eq!(back, forth[..1], "{order}");
        let mut walked = forth;
        walked.sort_unstable_by(|a, b| b.1.cmp(&a.1));
        let statuses: Vec<&str> = walked.iter().map(|(_, status)| status.as_str()).collect();
        assert_eq!(statuses, ["success", "pending"], "{order}");
    }
}

#[tokio::test]
async fn attempts_are_listed_and_their_responses_can_be_removed() {
    let harness = Harness::new().await;
    let sent = four_fates(&harness).await;
    let path = "/api/v1/app/acme/attempt/endpoint/main";
    let all = harness.get(path).await.is(StatusCode::OK);
    assert_eq!(all["data"].as_array().map(Vec::len), Some(3));
    let failed = harness
        .get(&format!("{path}?status=2&status_code_class=400&with_msg=true"))
        .await
        .is(StatusCode::OK);
    assert_eq!(failed["data"].as_array().map(Vec::len), Some(1));
    let attempt = &failed["data"][0];
    assert_eq!(
        (&attempt["responseStatusCode"], &attempt["response"]),
        (&json!(404), &json!("answer"))
    );
    assert_eq!(
        (&attempt["msg"]["id"], &attempt["responseDurationMs"]),
        (&sent[2]["id"], &json!(12))
    );
    let none = harness.get(&format!("{path}?status=3")).await.is(StatusCode::OK);
    assert_eq!((&none["data"], &none["done"]), (&json!([]), &json!(true)));
    let message = text(&sent[2], "id");
    let by_msg = harness
        .get(&format!(
            "/api/v1/app/acme/attempt/msg/{message}?endpoint_id=main"
        ))
        .await
        .is(StatusCode::OK);
    assert_eq!(ids(&by_msg), [text(attempt, "id")]);
    let one = format!("/api/v1/app/acme/msg/{message}/attempt/{}", text(attempt, "id"));
    assert_eq!(harness.get(&one).await.is(StatusCode::OK)["response"], "answer");
    harness
        .delete(&format!("{one}/content"))
        .await
        .is(StatusCode::NO_CONTENT);
    assert_eq!(harness.get(&one).await.is(StatusCode::OK)["response"], "");
    let to = harness
        .get(&format!("/api/v1/app/acme/msg/{message}/endpoint"))
        .await
        .is(StatusCode::OK);
    assert_eq!(
        (&to["data"][0]["uid"], &to["data"][0]["statusText"]),
        (&json!("main"), &json!("fail"))
    );
}

#[tokio::test]
async fn messages_are_listed_newest_first_and_lose_their_payload_on_request() {
    let harness = Harness::new().await;
    harness.acme().await;
    let mut sent = Vec::new();
    for name in ["a", "b", "a"] {
        sent.push(send(&harness, name).await);
    }
    let path = "/api/v1/app/acme/msg";
    let list = harness.get(path).await.is(StatusCode::OK);
    assert_eq!(
        ids(&list),
        [text(&sent[2], "id"), text(&sent[1], "id"), text(&sent[0], "id")]
    );
    assert_eq!(list["data"][0]["payload"], json!({"type": "a"}));
    let list = harness
        .get(&format!("{path}?event_types=a&limit=1&with_content=false"))
        .await
        .is(StatusCode::OK);
    assert_eq!(
        (ids(&list), &list["done"]),
        (vec![text(&sent[2], "id")], &json!(false))
    );
    assert_eq!(list["data"][0]["payload"], json!({}));
    let one = format!("{path}/{}", text(&sent[0], "id"));
    harness
        .delete(&format!("{one}/content"))
        .await
        .is(StatusCode::NO_CONTENT);
    assert_eq!(harness.get(&one).await.is(StatusCode::OK)["payload"], json!({}));
    let resend = harness
        .post(&format!("{one}/endpoint/main/resend"), json!({}))
        .await;
    assert_eq!(
        (resend.code(), resend.status),
        ("missing_payload", StatusCode::BAD_REQUEST)
    );
}

#[tokio::test]
async fn a_young_message_that_is_not_on_record_is_waited_for_and_not_denied() {
    let settings = Settings {
        record_wait: Duration::from_millis(100),
        ..Settings::default()
    };
    let harness = Harness::with(true, settings).await;
    harness.acme().await;
    let young = postrider_model::MessageId::generate(UnixMillis::now(), &mut rand::rng());
    let answer = harness.get(&format!("/api/v1/app/acme/msg/{young}")).await;
    assert_eq!(
        (answer.code(), answer.retry_after()),
        ("not_recorded_yet", Some(1))
    );
    answer.is(StatusCode::SERVICE_UNAVAILABLE);
    let old = UnixMillis::now().minus(Duration::from_secs(61));
    let old = postrider_model::MessageId::generate(old, &mut rand::rng());
    harness
        .get(&format!("/api/v1/app/acme/msg/{old}"))
        .await
        .is(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_was_parked_can_be_looked_at_and_removed() {
    let harness = Harness::new().await;
    harness
        .store
        .park("job", "came back", &Bytes::from_static(b"frame"))
        .await
        .expect("parked");
    let list = harness.get("/api/v1/parked").await.is(StatusCode::OK);
    let row = &list["data"][0];
    assert_eq!(
        (&row["kind"], &row["reason"], &row["head"]),
        (&json!("job"), &json!("came back"), &json!("ZnJhbWU="))
    );
    assert_eq!((&row["readable"], &list["done"]), (&json!(true), &json!(true)));
    let more = Bytes::from_static(b"another");
    let parked = harness.store.park("frame", "newer", &more).await;
    assert!(parked.expect("parked"));
    let newest = harness.get("/api/v1/parked?limit=1").await.is(StatusCode::OK);
    assert_eq!(
        (&newest["data"][0]["kind"], &newest["done"]),
        (&json!("frame"), &json!(false))
    );
    let next = format!("/api/v1/parked?limit=1&iterator={}", text(&newest, "iterator"));
    let next = harness.get(&next).await.is(StatusCode::OK);
    assert_eq!(
        (&next["data"][0]["id"], &next["done"]),
        (&row["id"], &json!(true))
    );
    let newest = format!("/api/v1/parked/{}", newest["data"][0]["id"]);
    harness.delete(&newest).await.is(StatusCode::NO_CONTENT);
    harness
        .delete(&format!("/api/v1/parked/{}", row["id"]))
        .await
        .is(StatusCode::NO_CONTENT);
    assert_eq!(
        harness.get("/api/v1/parked").await.is(StatusCode::OK),
        json!({"data": [], "iterator": null, "done": true})
    );
}

#[tokio::test]
async fn the_gateway_stops_when_it_is_told_to() {
    let harness = Harness::new().await;
    let stopped = tokio::time::timeout(Duration::from_secs(10), harness.gateway.shutdown()).await;
    assert!(stopped.is_ok());
}

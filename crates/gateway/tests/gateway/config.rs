//! Applications, endpoints and event types.

use std::time::Duration;

use http::StatusCode;
use postrider_model::UnixMillis;
use serde_json::{Value, json};

use crate::harness::{Harness, reads, text};

const MAIN: &str = "/api/v1/app/acme/endpoint/main";

#[tokio::test]
async fn an_application_lives() {
    let harness = Harness::new().await;
    let input = json!({"name": "Acme", "uid": "acme", "metadata": {"a": "b"}, "throttleRate": 7});
    let made = harness
        .post("/api/v1/app", input.clone())
        .await
        .is(StatusCode::CREATED);
    assert_eq!(made["createdAt"], made["updatedAt"]);
    for path in [
        format!("/api/v1/app/{}", text(&made, "id")),
        "/api/v1/app/acme".to_owned(),
    ] {
        assert_eq!(harness.get(&path).await.is(StatusCode::OK), made);
    }
    harness
        .post("/api/v1/app", input.clone())
        .await
        .is(StatusCode::CONFLICT);
    let found = harness
        .post("/api/v1/app?get_if_exists=true", input)
        .await
        .is(StatusCode::OK);
    assert_eq!(found["id"], made["id"]);
    let patched = harness
        .patch("/api/v1/app/acme", json!({"throttleRate": null}))
        .await
        .is(StatusCode::OK);
    assert_eq!(
        (patched.get("throttleRate"), &patched["metadata"]),
        (None, &json!({"a": "b"}))
    );
    assert!(text(&patched, "updatedAt") > text(&made, "updatedAt"));
    let replaced = harness
        .put("/api/v1/app/acme", json!({"name": "Acme 2", "uid": null}))
        .await
        .is(StatusCode::OK);
    assert_eq!((replaced.get("uid"), &replaced["metadata"]), (None, &json!({})));
    let created = harness
        .put("/api/v1/app/fresh", json!({"name": "Fresh"}))
        .await
        .is(StatusCode::CREATED);
    assert_eq!(created["uid"], "fresh");
    harness
        .delete("/api/v1/app/fresh")
        .await
        .is(StatusCode::NO_CONTENT);
    harness.get("/api/v1/app/fresh").await.is(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn making_the_same_thing_twice_with_one_key_makes_it_once() {
    let harness = Harness::new().await;
    let input = json!({"name": "Acme", "uid": "acme"});
    let first = harness
        .post_with_key("/api/v1/app", "k", input.clone())
        .await
        .is(StatusCode::CREATED);
    assert_eq!(
        harness
            .post_with_key("/api/v1/app", "k", input)
            .await
            .is(StatusCode::CREATED),
        first
    );
    let reused = harness
        .post_with_key("/api/v1/app", "k", json!({"name": "x"}))
        .await;
    assert_eq!(reused.code(), "idempotency_key_reused");
    let endpoint = json!({"url": "https://example.com"});
    let path = "/api/v1/app/acme/endpoint";
    let first = harness
        .post_with_key(path, "k", endpoint.clone())
        .await
        .is(StatusCode::CREATED);
    assert_eq!(
        harness
            .post_with_key(path, "k", endpoint)
            .await
            .is(StatusCode::CREATED),
        first
    );
    let event_type = json!({"name": "a", "description": "b"});
    let path = "/api/v1/event-type";
    let first = harness
        .post_with_key(path, "e", event_type.clone())
        .await
        .is(StatusCode::CREATED);
    assert_eq!(
        harness
            .post_with_key(path, "e", event_type.clone())
            .await
            .is(StatusCode::CREATED),
        first
    );
    let exists = harness.post_with_key(path, "f", event_type).await;
    assert_eq!(
        (exists.code(), exists.status),
        ("event_type_exists", StatusCode::CONFLICT)
    );
    let key_of_a_refused_request = harness
        .post_with_key(path, "f", json!({"name": "c", "description": ""}))
        .await;
    key_of_a_refused_request.is(StatusCode::CREATED);
}

#[tokio::test]
async fn an_endpoint_lives() {
    let harness = Harness::new().await;
    harness.acme().await;
    let input = json!({
        "url": "https://example.com/x", "uid": "x", "description": "d", "eventTypes": ["a", "a", "b"],
        "channels": ["c"], "throttleRate": 5, "metadata": {"k": "v"}, "ordered": true, "onExhausted": "pause",
        "headerNames": "svix", "timeoutSeconds": 3, "retrySchedule": [1, 60], "paused": true,
    });
    let made = harness.endpoint(input.clone()).await;
    for (name, value) in input.as_object().into_iter().flatten() {
        if name != "eventTypes" {
            assert_eq!(&made[name], value, "{name}");
        }
    }
    assert_eq!(
        (&made["eventTypes"], &made["disabled"]),
        (&json!(["a", "b"]), &json!(false))
    );
    let path = "/api/v1/app/acme/endpoint/x";
    assert_eq!(harness.get(path).await.is(StatusCode::OK), made);
    let change = json!({"eventTypes": null, "channels": [], "retrySchedule": null, "paused": false});
    let patched = harness.patch(path, change).await.is(StatusCode::OK);
    assert_eq!(
        (&patched["eventTypes"], &patched["channels"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(
        (patched.get("retrySchedule"), &patched["paused"]),
        (None, &json!(false))
    );
    assert_eq!(
        (&patched["throttleRate"], &patched["ordered"]),
        (&json!(5), &json!(true))
    );
    // Clients that do not know our own fields leave them alone.
    let replaced = harness
        .put(path, json!({"url": "https://example.com/y", "uid": "x"}))
        .await
        .is(StatusCode::OK);
    assert_eq!(
        (replaced.get("throttleRate"), &replaced["ordered"]),
        (None, &json!(true))
    );
    assert_eq!(
        (&replaced["description"], &replaced["metadata"]),
        (&json!(""), &json!({}))
    );
    let created = harness
        .put(
            "/api/v1/app/acme/endpoint/y",
            json!({"url": "https://example.com"}),
        )
        .await;
    assert_eq!(created.is(StatusCode::CREATED)["uid"], "y");
    harness
        .post(
            "/api/v1/app/acme/endpoint",
            json!({"url": "https://example.com", "uid": "y"}),
        )
        .await
        .is(StatusCode::CONFLICT);
    harness.delete(path).await.is(StatusCode::NO_CONTENT);
    harness.get(path).await.is(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn putting_the_same_thing_again_and_again_under_one_uid_makes_it_once() {
    let harness = Harness::new().await;
    for (list, named, body) in [
        ("/api/v1/app", "/api/v1/app/acme", json!({"name": "Acme"})),
        (
            "/api/v1/app/acme/endpoint",
            MAIN,
            json!({"url": "https://example.com"}),
        ),
    ] {
        let made = harness.put(named, body.clone()).await.is(StatusCode::CREATED);
        for _ in 0..3 {
            let again = harness.put(named, body.clone()).await.is(StatusCode::OK);
            assert_eq!((&again["id"], &again["uid"]), (&made["id"], &made["uid"]));
        }
        let listed = harness.get(list).await.is(StatusCode::OK);
        assert_eq!(listed["data"].as_array().map(Vec::len), Some(1), "{list}");
        // Who says so takes the name away, and so does who replaces all of it by its id.
        let by_id = format!("{list}/{}", text(&made, "id"));
        let mut unnamed = body.clone();
        unnamed["uid"] = Value::Null;
        let mut renamed = body.clone();
        renamed["uid"] = json!(text(&made, "uid"));
        for (path, body) in [(named, &unnamed), (&by_id, &body)] {
            let replaced = harness.put(path, body.clone()).await.is(StatusCode::OK);
            assert_eq!(replaced.get("uid"), None, "{path}");
            let replaced = harness.put(&by_id, renamed.clone()).await.is(StatusCode::OK);
            assert_eq!(replaced["uid"], made["uid"], "{path}");
        }
    }
}

#[tokio::test]
async fn a_secret_can_be_chosen_and_rotated() {
    let harness = Harness::new().await;
    harness.acme().await;
    let path = format!("{MAIN}/secret");
    let first = harness.get(&path).await.is(StatusCode::OK);
    assert!(text(&first, "key").starts_with("whsec_"));
    let rotated = harness
        .post(&format!("{path}/rotate"), json!({}))
        .await
        .is(StatusCode::OK);
    assert_ne!(rotated, first);
    assert_eq!(harness.get(&path).await.is(StatusCode::OK), rotated);
    let chosen = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let rotate = json!({"key": chosen, "gracePeriodSeconds": 0});
    let first = harness
        .post_with_key(&format!("{path}/rotate"), "k", rotate.clone())
        .await
        .is(StatusCode::OK);
    assert_eq!(first["key"], chosen);
    harness
        .post(&format!("{path}/rotate"), json!({}))
        .await
        .is(StatusCode::OK);
    // A repeat of the older rotation does not bring its secret back.
    harness
        .post_with_key(&format!("{path}/rotate"), "k", rotate)
        .await
        .is(StatusCode::OK);
    assert_ne!(harness.get(&path).await.is(StatusCode::OK)["key"], chosen);
}

#[tokio::test]
async fn headers_that_may_be_credentials_are_shown_by_name_only() {
    let harness = Harness::new().await;
    harness.acme().await;
    let path = format!("{MAIN}/headers");
    let headers = json!({"headers": {"X-Team": "a", "Authorization": "Bearer s3cret", "X-Old": "o"}});
    harness.put(&path, headers).await.is(StatusCode::NO_CONTENT);
    let change = json!({"headers": {"x-team": "b", "X-Old": null}});
    harness.patch(&path, change).await.is(StatusCode::NO_CONTENT);
    let shown = harness.get(&path).await.is(StatusCode::OK);
    assert_eq!(
        shown,
        json!({"headers": {"x-team": "b"}, "sensitive": ["Authorization"]})
    );
}

#[tokio::test]
async fn an_event_type_lives() {
    let harness = Harness::new().await;
    let input = json!({"name": "user.signup", "description": "d", "schemas": {"1": {"type": "object"}}, "featureFlag": "beta"});
    let made = harness
        .post("/api/v1/event-type", input)
        .await
        .is(StatusCode::CREATED);
    let path = "/api/v1/event-type/user.signup";
    assert_eq!(harness.get(path).await.is(StatusCode::OK), made);
    assert_eq!(
        (&made["featureFlags"], &made["archived"]),
        (&json!(["beta"]), &json!(false))
    );
    let patched = harness
        .patch(path, json!({"deprecated": true, "featureFlags": null}))
        .await
        .is(StatusCode::OK);
    assert_eq!(
        (&patched["deprecated"], patched.get("featureFlag")),
        (&json!(true), None)
    );
    assert_eq!(patched["schemas"], made["schemas"]);
    let replaced = harness
        .put(path, json!({"description": "new"}))
        .await
        .is(StatusCode::OK);
    assert_eq!(
        (&replaced["schemas"], &replaced["createdAt"]),
        (&Value::Null, &made["createdAt"])
    );
    harness
        .put("/api/v1/event-type/other", json!({"description": ""}))
        .await
        .is(StatusCode::CREATED);
    harness.delete(path).await.is(StatusCode::NO_CONTENT);
    let names = |list: &Value| -> Vec<String> {
        list["data"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| text(one, "name").to_owned())
            .collect()
    };
    let listed = harness.get("/api/v1/event-type").await.is(StatusCode::OK);
    assert_eq!(names(&listed), ["other"]);
    let listed = harness
        .get("/api/v1/event-type?include_archived=true&with_content=true")
        .await
        .is(StatusCode::OK);
    assert_eq!(names(&listed), ["other", "user.signup"]);
    harness
        .delete(&format!("{path}?expunge=true"))
        .await
        .is(StatusCode::NO_CONTENT);
    harness.get(path).await.is(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn pages_lead_forth_and_back() {
    let harness = Harness::new().await;
    for n in 0..7 {
        harness
            .post("/api/v1/app", json!({"name": "n", "uid": format!("u{n}")}))
            .await
            .is(StatusCode::CREATED);
    }
    let uids = |list: &Value| -> Vec<String> {
        list["data"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| text(one, "uid").to_owned())
            .collect()
    };
    let all = harness.get("/api/v1/app").await.is(StatusCode::OK);
    let order = uids(&all);
    assert_eq!((order.len(), &all["done"]), (7, &json!(true)));
    let down = harness
        .get("/api/v1/app?order=descending")
        .await
        .is(StatusCode::OK);
    assert_eq!(uids(&down), order.iter().rev().cloned().collect::<Vec<_>>());
    let mut pages = Vec::new();
    let mut path = "/api/v1/app?limit=3".to_owned();
    loop {
        let page = harness.get(&path).await.is(StatusCode::OK);
        path = format!("/api/v1/app?limit=3&iterator={}", text(&page, "iterator"));
        let done = page["done"] == json!(true);
        pages.push(page);
        if done {
            break;
        }
    }
    let found: Vec<Vec<String>> = pages.iter().map(uids).collect();
    assert_eq!(found, [&order[..3], &order[3..6], &order[6..]]);
    let back = format!("/api/v1/app?limit=3&iterator={}", text(&pages[2], "prevIterator"));
    let back = harness.get(&back).await.is(StatusCode::OK);
    assert_eq!(
        (uids(&back), &back["done"]),
        (order[3..6].to_vec(), &json!(false))
    );
    let back = format!("/api/v1/app?limit=3&iterator={}", text(&back, "prevIterator"));
    let back = harness.get(&back).await.is(StatusCode::OK);
    assert_eq!((uids(&back), &back["done"]), (order[..3].to_vec(), &json!(true)));
}

#[tokio::test]
async fn configuration_is_read_once_and_a_change_that_nobody_announced_is_found() {
    let harness = Harness::new().await;
    harness.acme().await;
    // The first answer of who follows the changes.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let body = json!({"eventType": "a", "payload": {}});
    harness.message(body.clone()).await.is(StatusCode::ACCEPTED);
    let job = harness.broker.jobs().remove(0);
    // For longer than what nobody vouches for may be used.
    let before = reads(&harness);
    for _ in 0..24 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        harness.message(body.clone()).await.is(StatusCode::ACCEPTED);
    }
    assert_eq!(reads(&harness), before);

    // As by a gateway that ended right after the commit: the version that the limits know stays the old one.
    let (app, now) = (job.message.app, UnixMillis::now());
    let deleted = harness.store.delete_endpoint(app, job.endpoint, now).await;
    assert_eq!(deleted.expect("the store answers"), Some(3));
    for _ in 0..300 {
        let before = harness.broker.jobs().len();
        harness.message(body.clone()).await.is(StatusCode::ACCEPTED);
        if harness.broker.jobs().len() == before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("messages still go to an endpoint that was deleted");
}

#[tokio::test]
async fn names_that_begin_with_a_minus_are_listed_page_by_page() {
    let harness = Harness::new().await;
    let names = ["-a", "-b", "x"];
    for name in names {
        let made = harness
            .post("/api/v1/event-type", json!({"name": name, "description": ""}))
            .await;
        made.is(StatusCode::CREATED);
    }
    let mut path = "/api/v1/event-type?limit=1".to_owned();
    let mut listed = Vec::new();
    while listed.len() <= names.len() {
        let page = harness.get(&path).await.is(StatusCode::OK);
        listed.extend(
            page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| text(one, "name").to_owned()),
        );
        if page["done"] == true {
            break;
        }
        path = format!("/api/v1/event-type?limit=1&iterator={}", text(&page, "iterator"));
    }
    assert_eq!(listed, names);
}

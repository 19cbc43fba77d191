//! Every operation of the description, with each kind of key.

use axum::body::Body;
use http::{Method, Request, StatusCode};
use postrider_gateway::{Gateway, Settings};
use serde_json::{Value, json};

use crate::harness::{Harness, json_body, text};
use crate::openapi::operations;

/// Needs no key.
fn is_public(path: &str) -> bool {
    path.starts_with("/api/v1/health")
}

fn is_ingest(method: &Method, path: &str) -> bool {
    method == Method::POST
        && [
            "/api/v1/app/{app_id}/msg",
            "/api/v1/app/{app_id}/msg/batch",
            "/api/v1/app/{app_id}/msg/raw",
        ]
        .contains(&path)
}

/// The path with something in each parameter's place.
fn filled(path: &str, app: &str) -> String {
    let mut filled = path.replace("{app_id}", app);
    while let (Some(from), Some(to)) = (filled.find('{'), filled.find('}')) {
        filled.replace_range(from..=to, "unknown");
    }
    filled
}

async fn status(harness: &Harness, method: &Method, path: &str, key: Option<&str>) -> StatusCode {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let request = request
        .body(json_body(&json!({"eventType": "a"})))
        .expect("a request");
    harness.send(request).await.status
}

async fn new_key(harness: &Harness, scope: &str) -> Value {
    let made = harness
        .post("/api/v1/auth/key", json!({"scope": scope, "name": "test"}))
        .await;
    made.is(StatusCode::CREATED)
}

#[tokio::test]
async fn every_operation_asks_for_a_key_that_may() {
    let harness = Harness::new().await;
    harness.acme().await;
    let acme = harness.get("/api/v1/app/acme").await.is(StatusCode::OK);
    let other = harness
        .post("/api/v1/app", json!({"name": "Other", "uid": "other"}))
        .await
        .is(StatusCode::CREATED);
    let ingest = new_key(&harness, "ingest").await;
    let portal = new_key(&harness, &format!("app:{}", text(&other, "id"))).await;
    let mut seen = 0;
    for (method, path) in operations(&Gateway::openapi()) {
        let target = filled(&path, "acme");
        let anonymous = status(&harness, &method, &target, None).await;
        let unknown = status(&harness, &method, &target, Some("prk_nope")).await;
        let with_ingest = status(&harness, &method, &target, Some(text(&ingest, "key"))).await;
        let with_other = status(&harness, &method, &target, Some(text(&portal, "key"))).await;
        if is_public(&path) {
            assert_eq!(anonymous, StatusCode::NO_CONTENT, "{method} {path}");
            continue;
        }
        seen += 1;
        assert_eq!(anonymous, StatusCode::UNAUTHORIZED, "{method} {path}");
        assert_eq!(unknown, StatusCode::UNAUTHORIZED, "{method} {path}");
        assert_eq!(with_other, StatusCode::FORBIDDEN, "{method} {path}");
        if is_ingest(&method, &path) {
            assert_ne!(with_ingest, StatusCode::FORBIDDEN, "{method} {path}");
        } else {
            assert_eq!(with_ingest, StatusCode::FORBIDDEN, "{method} {path}");
        }
    }
    assert!(seen > 40, "only {seen} operations");
    // Nothing was done by all that.
    assert_eq!(harness.get("/api/v1/app/acme").await.is(StatusCode::OK), acme);
}

#[tokio::test]
async fn an_applications_own_key_manages_it_and_nothing_else() {
    let harness = Harness::new().await;
    harness.acme().await;
    let acme = harness.get("/api/v1/app/acme").await.is(StatusCode::OK);
    let key = new_key(&harness, &format!("app:{}", text(&acme, "id"))).await;
    let key = text(&key, "key");
    for name in ["acme", text(&acme, "id")] {
        let path = format!("/api/v1/app/{name}");
        assert_eq!(
            status(&harness, &Method::GET, &path, Some(key)).await,
            StatusCode::OK
        );
        let list = format!("{path}/endpoint");
        assert_eq!(
            status(&harness, &Method::GET, &list, Some(key)).await,
            StatusCode::OK
        );
        // It could raise its own quota.
        assert_eq!(
            status(&harness, &Method::PATCH, &path, Some(key)).await,
            StatusCode::FORBIDDEN
        );
        assert_eq!(
            status(&harness, &Method::DELETE, &path, Some(key)).await,
            StatusCode::FORBIDDEN
        );
    }
    assert_eq!(
        status(&harness, &Method::GET, "/api/v1/app", Some(key)).await,
        StatusCode::FORBIDDEN
    );
    // A uid that moves on takes no key along.
    harness
        .patch("/api/v1/app/acme", json!({"uid": "acme-2"}))
        .await
        .is(StatusCode::OK);
    harness
        .post("/api/v1/app", json!({"name": "New", "uid": "acme"}))
        .await
        .is(StatusCode::CREATED);
    let endpoints = "/api/v1/app/acme/endpoint";
    assert_eq!(
        status(&harness, &Method::GET, endpoints, Some(key)).await,
        StatusCode::FORBIDDEN
    );
}

#[tokio::test]
async fn a_uid_that_has_just_moved_leads_no_key_to_another_application() {
    let one = Harness::new().await;
    let app = one.acme().await.to_string();
    let two = Harness::over(one.store.clone(), false, Settings::default());
    two.until_ready().await;
    let key = new_key(&one, &format!("app:{app}")).await;
    let bearer = format!("Bearer {}", text(&key, "key"));
    let headers = [("authorization", bearer.as_str())];
    for round in 0..5 {
        let (path, moved) = (format!("/api/v1/app/acme-{round}"), format!("acme-{round}-moved"));
        let own = format!("/api/v1/app/{app}");
        one.patch(&own, json!({"uid": format!("acme-{round}")}))
            .await
            .is(StatusCode::OK);
        let get = || one.call(Method::GET, &path, &headers, Body::empty());
        // Until it is cached, and no more is announced of it.
        for _ in 0..3 {
            assert_eq!(get().await.is(StatusCode::OK)["id"], app);
        }
        // By another gateway, so that this one has not heard of it.
        two.patch(&own, json!({"uid": moved})).await.is(StatusCode::OK);
        two.put(&path, json!({"name": "Other"}))
            .await
            .is(StatusCode::CREATED);
        let seen = get().await;
        assert!(
            seen.status == StatusCode::FORBIDDEN || seen.body["id"] == app,
            "{}",
            seen.body
        );
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused() {
    let harness = Harness::new().await;
    harness.acme().await;
    let made = new_key(&harness, "admin").await;
    let key = text(&made, "key");
    assert_eq!(
        status(&harness, &Method::GET, "/api/v1/app", Some(key)).await,
        StatusCode::OK
    );
    let listed = harness.get("/api/v1/auth/key").await.is(StatusCode::OK);
    assert_eq!(listed["data"][0]["id"], made["id"]);
    assert_eq!(listed["data"][0].get("key"), None);
    let path = format!("/api/v1/auth/key/{}", text(&made, "id"));
    harness.delete(&path).await.is(StatusCode::NO_CONTENT);
    harness.delete(&path).await.is(StatusCode::NOT_FOUND);
    assert_eq!(
        status(&harness, &Method::GET, "/api/v1/app", Some(key)).await,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn a_key_has_a_known_scope() {
    let harness = Harness::new().await;
    for scope in ["root", "app:", "app:nope"] {
        let refused = harness.post("/api/v1/auth/key", json!({"scope": scope})).await;
        refused.is(StatusCode::UNPROCESSABLE_ENTITY);
    }
    let missing = harness
        .post(
            "/api/v1/auth/key",
            json!({"scope": "app:app_0000000000000000000000"}),
        )
        .await;
    missing.is(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_schemes_name_may_be_written_in_any_case_and_others_are_refused() {
    let harness = Harness::new().await;
    let key = crate::harness::ADMIN;
    for (value, wanted) in [
        (format!("bearer {key}"), StatusCode::OK),
        (format!("Basic {key}"), StatusCode::UNAUTHORIZED),
        (key.to_owned(), StatusCode::UNAUTHORIZED),
        ("Bearer ".to_owned(), StatusCode::UNAUTHORIZED),
    ] {
        let headers = [("authorization", value.as_str())];
        let answer = harness
            .call(Method::GET, "/api/v1/app", &headers, Body::empty())
            .await;
        assert_eq!(answer.status, wanted, "{value}");
    }
}

//! Bad input: the status, the code and the place.

use axum::body::Body;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::Harness;

const MSG: &str = "/api/v1/app/acme/msg";
const APP: &str = "/api/v1/app";
const ENDPOINT: &str = "/api/v1/app/acme/endpoint";

/// What is sent, and the place of the error that must come back.
const INVALID: &[(&str, &str, &str, &[&str])] = &[
    ("POST", MSG, "{", &["body"]),
    ("POST", MSG, "\"text\"", &["body"]),
    ("POST", MSG, r#"{"payload":{}}"#, &["body", "eventType"]),
    ("POST", MSG, r#"{"eventType":"a"}"#, &["body", "payload"]),
    (
        "POST",
        MSG,
        r#"{"eventType":"a","payload":[]}"#,
        &["body", "payload"],
    ),
    (
        "POST",
        MSG,
        r#"{"eventType":"a","payload":null}"#,
        &["body", "payload"],
    ),
    (
        "POST",
        MSG,
        r#"{"eventType":7,"payload":{}}"#,
        &["body", "eventType"],
    ),
    (
        "POST",
        MSG,
        r#"{"eventType":"","payload":{}}"#,
        &["body", "eventType"],
    ),
    (
        "POST",
        MSG,
        r#"{"eventType":"a b","payload":{}}"#,
        &["body", "eventType"],
    ),
    (
        "POST",
        MSG,
        r#"{"eventType":"a","payload":{},"eventId":"msg_x"}"#,
        &["body", "eventId"],
    ),
    (
        "POST",
        MSG,
        r#"{"eventType":"a","payload":{},"channels":["a b"]}"#,
        &["body", "channels"],
    ),
    (
        "POST",
        MSG,
        r#"{"eventType":"a","payload":{},"channels":["a","b","c","d","e","f"]}"#,
        &["body", "channels"],
    ),
    (
        "POST",
        MSG,
        r#"{"eventType":"a","payload":{},"channels":[1]}"#,
        &["body", "channels", "0"],
    ),
    (
        "POST",
        MSG,
        r#"{"eventType":"a","payload":{},"payloadRetentionPeriod":4}"#,
        &["body", "payloadRetentionPeriod"],
    ),
    (
        "POST",
        MSG,
        r#"{"eventType":"a","payload":{},"tags":["x"]}"#,
        &["body", "tags"],
    ),
    (
        "POST",
        MSG,
        r#"{"eventType":"a","payload":{},"deliverAt":"2030-01-01T00:00:00Z"}"#,
        &["body", "deliverAt"],
    ),
    (
        "POST",
        MSG,
        r#"{"eventType":"a","payload":{},"payloadRetentionHours":1}"#,
        &["body", "payloadRetentionHours"],
    ),
    ("POST", "/api/v1/app/acme/msg/raw", "x", &["query", "eventType"]),
    (
        "POST",
        "/api/v1/app/acme/msg/batch",
        r#"{"messages":[]}"#,
        &["body", "messages"],
    ),
    (
        "POST",
        "/api/v1/app/acme/msg/batch",
        r#"{"messages":[{"eventType":"a","payload":{}},{"eventType":1,"payload":{}}]}"#,
        &["body", "messages", "1", "eventType"],
    ),
    ("POST", APP, "{}", &["body", "name"]),
    ("POST", APP, r#"{"name":""}"#, &["body", "name"]),
    ("POST", APP, r#"{"name":"a","uid":"app_x"}"#, &["body", "uid"]),
    ("POST", APP, r#"{"name":"a","uid":"a/b"}"#, &["body", "uid"]),
    (
        "POST",
        APP,
        r#"{"name":"a","throttleRate":0}"#,
        &["body", "throttleRate"],
    ),
    (
        "POST",
        APP,
        r#"{"name":"a","metadata":{"x":1}}"#,
        &["body", "metadata", "x"],
    ),
    ("PATCH", "/api/v1/app/acme", r#"{"name":null}"#, &["body", "name"]),
    ("POST", ENDPOINT, "{}", &["body", "url"]),
    ("POST", ENDPOINT, r#"{"url":"nonsense"}"#, &["body", "url"]),
    (
        "POST",
        ENDPOINT,
        r#"{"url":"ftp://example.com"}"#,
        &["body", "url"],
    ),
    (
        "POST",
        ENDPOINT,
        r#"{"url":"http://user:pw@example.com"}"#,
        &["body", "url"],
    ),
    (
        "POST",
        ENDPOINT,
        r#"{"url":"http://127.0.0.1/"}"#,
        &["body", "url"],
    ),
    (
        "POST",
        ENDPOINT,
        r#"{"url":"http://[::ffff:169.254.169.254]/"}"#,
        &["body", "url"],
    ),
    (
        "PATCH",
        "/api/v1/app/acme/endpoint/main",
        r#"{"url":"http://10.0.0.1/"}"#,
        &["body", "url"],
    ),
    (
        "POST",
        ENDPOINT,
        r#"{"url":"https://example.com","eventTypes":[]}"#,
        &["body", "eventTypes"],
    ),
    (
        "POST",
        ENDPOINT,
        r#"{"url":"https://example.com","secret":"whsec_short"}"#,
        &["body", "secret"],
    ),
    (
        "POST",
        ENDPOINT,
        r#"{"url":"https://example.com","timeoutSeconds":31}"#,
        &["body", "timeoutSeconds"],
    ),
    (
        "POST",
        ENDPOINT,
        r#"{"url":"https://example.com","retrySchedule":[0]}"#,
        &["body", "retrySchedule"],
    ),
    (
        "POST",
        ENDPOINT,
        r#"{"url":"https://example.com","onExhausted":"stop"}"#,
        &["body", "onExhausted"],
    ),
    (
        "POST",
        ENDPOINT,
        r#"{"url":"https://example.com","headers":{"Host":"x"}}"#,
        &["body", "headers", "Host"],
    ),
    (
        "PUT",
        "/api/v1/app/acme/endpoint/main/headers",
        r#"{"headers":{"webhook-id":"x"}}"#,
        &["body", "headers", "webhook-id"],
    ),
    (
        "POST",
        "/api/v1/app/acme/endpoint/main/secret/rotate",
        r#"{"gracePeriodSeconds":604801}"#,
        &["body", "gracePeriodSeconds"],
    ),
    (
        "POST",
        "/api/v1/app/acme/endpoint/main/recover",
        r#"{"since":"yesterday"}"#,
        &["body", "since"],
    ),
    (
        "POST",
        "/api/v1/app/acme/endpoint/main/recover",
        r#"{"since":"2999-01-01T00:00:00Z"}"#,
        &["body", "since"],
    ),
    (
        "POST",
        "/api/v1/event-type",
        r#"{"name":"a b","description":""}"#,
        &["body", "name"],
    ),
    (
        "POST",
        "/api/v1/event-type",
        r#"{"name":"a","description":"","schemas":[]}"#,
        &["body", "schemas"],
    ),
    ("GET", "/api/v1/app?limit=251", "", &["query", "limit"]),
    ("GET", "/api/v1/app?limit=many", "", &["query", "limit"]),
    ("GET", "/api/v1/app?order=up", "", &["query", "order"]),
    ("GET", "/api/v1/app?iterator=nonsense", "", &["query", "iterator"]),
    (
        "GET",
        "/api/v1/app/acme/msg?before=soon",
        "",
        &["query", "before"],
    ),
    (
        "GET",
        "/api/v1/app/acme/msg?with_content=maybe",
        "",
        &["query", "with_content"],
    ),
    (
        "GET",
        "/api/v1/app/acme/attempt/endpoint/main?status=9",
        "",
        &["query", "status"],
    ),
    (
        "GET",
        "/api/v1/app/acme/attempt/endpoint/main?status_code_class=201",
        "",
        &["query", "status_code_class"],
    ),
];

#[tokio::test]
async fn bad_input_is_refused_with_its_place() {
    let harness = Harness::new().await;
    harness.acme().await;
    for (method, path, body, place) in INVALID {
        let method: Method = method.parse().expect("a method");
        let answer = harness.call(method.clone(), path, &[], Body::from(*body)).await;
        let detail = answer.body["detail"].clone();
        assert_eq!(
            answer.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{method} {path} {body}: {}",
            answer.body
        );
        let places: Vec<Value> = detail
            .as_array()
            .into_iter()
            .flatten()
            .map(|item| item["loc"].clone())
            .collect();
        assert!(places.contains(&json!(place)), "{method} {path} {body}: {detail}");
        let said = detail[0]["msg"].as_str().unwrap_or_default();
        assert!(
            said.len() > 10 && detail[0]["type"].is_string(),
            "{method} {path} {body}: {detail}"
        );
    }
}

/// What parsing drops is stored all the same, with each attempt too.
#[tokio::test]
async fn blanks_count_for_the_length_of_a_url() {
    let harness = Harness::new().await;
    harness.acme().await;
    let with_blanks = |blanks| json!({"url": format!("https://example.com/{}", " ".repeat(blanks))});
    let made = harness.post(ENDPOINT, with_blanks(2_028)).await;
    let made = made.is(StatusCode::CREATED);
    let id = made["id"].as_str().unwrap_or_default();
    let changed = harness
        .patch(&format!("{ENDPOINT}/{id}"), with_blanks(3_000))
        .await;
    for refused in [changed, harness.post(ENDPOINT, with_blanks(2_029)).await] {
        assert_eq!(
            refused.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{}",
            refused.body
        );
        assert_eq!(refused.body["detail"][0]["loc"], json!(["body", "url"]));
    }
}

#[tokio::test]
async fn the_texts_of_an_endpoint_have_a_limit_together() {
    let harness = Harness::new().await;
    harness.acme().await;
    let headers = |count: usize, chars: usize| {
        let headers = (0..count).map(|n| (format!("x-{n}"), json!("v".repeat(chars))));
        Value::Object(headers.collect())
    };
    let url = "https://example.com";
    let too_large = json!({"url": url, "headers": headers(50, 4096)});
    let fits = json!({"url": url, "headers": headers(15, 4096)});
    let refused = harness.post(ENDPOINT, too_large).await;
    let made = harness.post(ENDPOINT, fits).await.is(StatusCode::CREATED);
    let path = format!("{ENDPOINT}/{}", made["id"].as_str().unwrap_or_default());
    let names: Vec<String> = (0..100).map(|n| format!("{n:0100}")).collect();
    let patched = harness.patch(&path, json!({"eventTypes": names})).await;
    let more = json!({"headers": {"y": "v".repeat(4096), "z": "v".repeat(4096)}});
    let headers_path = format!("{path}/headers");
    let added = harness.patch(&headers_path, more).await;
    for refused in [refused, patched, added] {
        assert_eq!(
            refused.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{}",
            refused.body
        );
        let said = refused.body["detail"][0]["msg"].as_str().unwrap_or_default();
        assert!(said.contains("65536 bytes together"), "{said}");
    }
    let fewer = json!({"headers": headers(1, 10)});
    harness.put(&headers_path, fewer).await.is(StatusCode::NO_CONTENT);
    harness
        .patch(&path, json!({"eventTypes": names}))
        .await
        .is(StatusCode::OK);
}

#[tokio::test]
async fn a_blocked_address_is_named_with_its_range() {
    let harness = Harness::new().await;
    harness.acme().await;
    let refused = harness
        .post(ENDPOINT, json!({"url": "http://169.254.169.254/latest"}))
        .await;
    let said = refused.body["detail"][0]["msg"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(said.contains("169.254.169.254") && said.contains("RFC"), "{said}");
}

#[tokio::test]
async fn bodies_have_a_limit_announced_or_not() {
    let harness = Harness::new().await;
    harness.acme().await;
    let large = format!(
        r#"{{"eventType":"a","payload":{{"x":"{}"}}}}"#,
        "x".repeat(1 << 20)
    );
    let announced = large.len().to_string();
    for headers in [&[("content-length", announced.as_str())][..], &[]] {
        let answer = harness
            .call(Method::POST, MSG, headers, Body::from(large.clone()))
            .await;
        assert_eq!(answer.code(), "payload_too_large");
        answer.is(StatusCode::PAYLOAD_TOO_LARGE);
    }
    // What is beyond the longest batch is passed over, readable as a message or not.
    let mut many = vec![r#"{"eventType":"a","payload":{}}"#; 10_001];
    many.push("0");
    let many = format!(r#"{{"messages":[{}]}}"#, many.join(","));
    let answer = harness
        .call(Method::POST, "/api/v1/app/acme/msg/batch", &[], Body::from(many))
        .await;
    assert_eq!(answer.code(), "batch_size");
    // In a batch there is room for it, but not as one message.
    let batch = format!(r#"{{"messages":[{large},{{"eventType":"a","payload":{{}}}}]}}"#);
    let answer = harness
        .call(Method::POST, "/api/v1/app/acme/msg/batch", &[], Body::from(batch))
        .await;
    let results = answer.is(StatusCode::ACCEPTED);
    assert_eq!(
        (&results["data"][0]["status"], &results["data"][1]["status"]),
        (&json!(413), &json!(202))
    );
}

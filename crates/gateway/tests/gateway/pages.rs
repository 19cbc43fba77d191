//! Pages that end before they are full.

use http::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Harness, text};

/// More than a page looks at.
const MANY: usize = 10_100;

async fn send(harness: &Harness, event_type: &str, count: usize) -> Vec<String> {
    let message = json!({"eventType": event_type, "payload": {}});
    let mut sent = Vec::new();
    while sent.len() < count {
        let messages = vec![message.clone(); (count - sent.len()).min(1_000)];
        let answer = harness
            .post("/api/v1/app/acme/msg/batch", json!({"messages": messages}))
            .await
            .is(StatusCode::ACCEPTED);
        let results = answer["data"].as_array().into_iter().flatten();
        sent.extend(results.map(|one| text(&one["message"], "id").to_owned()));
    }
    sent
}

/// Walks a list by iterators of this name until a page is done: the items' ids, the pages, and the last of them.
async fn walk(
    harness: &Harness,
    list: &str,
    iterator: Option<&str>,
    name: &str,
) -> (Vec<String>, usize, Value) {
    let (mut ids, mut pages) = (Vec::new(), 0);
    let mut iterator = iterator.map(str::to_owned);
    loop {
        let from = iterator
            .map(|text| format!("&iterator={text}"))
            .unwrap_or_default();
        let path = format!("/api/v1/app/acme/{list}&with_content=false{from}");
        let page = harness.get(&path).await.is(StatusCode::OK);
        let items = page["data"].as_array().into_iter().flatten();
        ids.extend(items.map(|one| text(one, "id").to_owned()));
        pages += 1;
        if page["done"] == json!(true) {
            return (ids, pages, page);
        }
        iterator = Some(text(&page, name).to_owned());
    }
}

#[tokio::test]
async fn a_filter_that_keeps_little_goes_on_page_by_page() {
    let harness = Harness::new().await;
    harness.acme().await;
    let oldest = send(&harness, "rare", 1).await.remove(0);
    send(&harness, "common", MANY).await;
    let newest = send(&harness, "rare", 1).await.remove(0);

    let rare = "msg?event_types=rare";
    let (forth, pages, last) = walk(&harness, rare, None, "iterator").await;
    assert_eq!(forth, [newest.as_str(), oldest.as_str()]);
    assert!(pages > 1, "a page looks at no more rows than it may");
    let before_last = Some(text(&last, "prevIterator"));
    let (back, pages, _) = walk(&harness, rare, before_last, "prevIterator").await;
    assert_eq!(back, [newest.as_str()]);
    assert!(pages > 1, "a page back likewise");

    let path = "/api/v1/app/acme/endpoint/main/msg?status=2";
    let page = harness.get(path).await.is(StatusCode::OK);
    assert_eq!((&page["data"], &page["done"]), (&json!([]), &json!(false)));
    for name in ["iterator", "prevIterator"] {
        let there = Some(text(&page, name));
        let (ids, ..) = walk(&harness, "endpoint/main/msg?status=2", there, name).await;
        assert!(ids.is_empty(), "{ids:?}");
    }
}

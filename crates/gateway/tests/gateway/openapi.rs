//! The description of the API.

use http::{Method, StatusCode};
use postrider_gateway::Gateway;
use utoipa::openapi::OpenApi;

use crate::harness::Harness;

/// Method and path template of every operation.
pub(crate) fn operations(openapi: &OpenApi) -> Vec<(Method, String)> {
    let mut found = Vec::new();
    for (path, item) in &openapi.paths.paths {
        let operations = [
            (Method::GET, &item.get),
            (Method::POST, &item.post),
            (Method::PUT, &item.put),
            (Method::PATCH, &item.patch),
            (Method::DELETE, &item.delete),
            (Method::HEAD, &item.head),
        ];
        let there = operations
            .into_iter()
            .filter(|(_, operation)| operation.is_some());
        found.extend(there.map(|(method, _)| (method, path.clone())));
    }
    found
}

#[test]
fn every_operation_of_the_open_api_is_there() {
    let ours: Vec<String> = operations(&Gateway::openapi())
        .into_iter()
        .map(|(method, path)| format!("{method} {path}"))
        .collect();
    let wanted = include_str!("operations.txt").lines();
    let missing: Vec<&str> = wanted
        .filter(|operation| !ours.iter().any(|own| own == operation))
        .collect();
    assert!(missing.is_empty(), "missing: {missing:#?}");
}

#[test]
fn the_description_is_pinned() {
    insta::assert_json_snapshot!("openapi", Gateway::openapi());
}

#[tokio::test]
async fn the_description_and_its_ui_are_served_without_a_key() {
    let harness = Harness::new().await;
    let request = |path: &str| {
        let request = http::Request::builder().uri(path);
        request.body(axum::body::Body::empty()).expect("a request")
    };
    let description = harness.send(request("/api/v1/openapi.json")).await;
    assert_eq!(description.status, StatusCode::OK);
    assert_eq!(description.body["info"]["title"], "Postrider");
    assert_eq!(harness.send(request("/docs/")).await.status, StatusCode::OK);
    assert_eq!(
        harness.send(request("/docs/swagger-ui-bundle.js")).await.status,
        StatusCode::OK
    );
}

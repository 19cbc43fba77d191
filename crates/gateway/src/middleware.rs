//! What happens around every request: its span, its time limit, its place in the queue, its end on a panic.

use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};
use tracing::Instrument as _;

use crate::error::Error;
use crate::state::Api;

/// How long a request waits for its turn.
const TURN_WAIT: Duration = Duration::from_secs(1);
const REQUEST_ID_CHARS_MAX: usize = 128;

/// Removes a trailing slash, which clients may or may not send.
pub(crate) fn trim_slash<B>(mut request: http::Request<B>) -> http::Request<B> {
    let uri = request.uri();
    // The UI's own path needs its slash.
    if uri.path().len() > 1 && uri.path().ends_with('/') && uri.path().starts_with("/api/") {
        let path = uri.path().trim_end_matches('/');
        let text = match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = PathAndQuery::try_from(text).ok();
        if let Ok(trimmed) = Uri::from_parts(parts) {
            *request.uri_mut() = trimmed;
        }
    }
    request
}

/// Bounds how many requests are in progress and how long each takes, and observes it.
pub(crate) async fn guard(
    State(api): State<Api>,
    route: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    let started = tokio::time::Instant::now();
    let method = request.method().clone();
    let span = tracing::info_span!(
        "request",
        http.request.method = %method,
        http.route = route.as_str(),
        request.id = request_id(request.headers()),
    );
    let response = turn(&api, request, next).instrument(span.clone()).await;
    let seconds = started.elapsed().as_secs_f64();
    tracing::debug!(
        parent: &span,
        http.response.status_code = response.status().as_u16(),
        request.duration_seconds = seconds,
        "a request was answered"
    );
    api.metrics
        .answered(&method, route.as_str(), response.status().as_u16(), seconds);
    response
}

async fn turn(api: &Api, request: Request, next: Next) -> Response {
    // Probes must be answered however busy the rest is.
    let path = request.uri().path();
    if path.starts_with("/health/") || path.starts_with("/api/v1/health") {
        return next.run(request).await;
    }
    let Ok(Ok(_turn)) = tokio::time::timeout(TURN_WAIT, api.requests.acquire()).await else {
        let detail = "Too many requests are in progress; try again.";
        return Error::unavailable("overloaded", detail, Duration::from_secs(1)).into_response();
    };
    match tokio::time::timeout(api.settings.request_timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = "The request took too long; try again with the same Idempotency-Key.";
            Error::unavailable("request_timeout", detail, Duration::from_secs(1)).into_response()
        }
    }
}

/// The caller's own id of the request, for logs: printable and short.
fn request_id(headers: &HeaderMap) -> Option<&str> {
    let value = headers
        .get("x-request-id")
        .or_else(|| headers.get("svix-req-id"))?;
    let text = value.to_str().ok()?;
    (text.len() <= REQUEST_ID_CHARS_MAX).then_some(text)
}

/// The answer when a handler panicked.
#[expect(clippy::needless_pass_by_value, reason = "the layer's signature")]
pub(crate) fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let words = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned());
    tracing::error!(panic = words, "a request handler panicked");
    Error::internal().into_response()
}

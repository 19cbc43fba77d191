//! What happens around every request: its span, its time limit, its place in the queue, its key, its end on a panic.
//!
//! It is one layer, since each layer costs every request a few allocations: [`around`] calls the rules, which stand in
//! the modules of their subjects.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};
use tokio::sync::SemaphorePermit;
use tower::Service as _;
use tracing::Instrument as _;

use crate::error::Error;
use crate::state::Api;
use crate::{auth, trace};

/// How long a request waits for its turn.
const TURN_WAIT: Duration = Duration::from_secs(1);
const REQUEST_ID_CHARS_MAX: usize = 128;

/// The request without its trailing slash, which clients may or may not send; none when there is nothing to remove.
pub(crate) fn trim_slash(mut request: Request) -> Option<Request> {
    let uri = request.uri();
    // The UI's own path needs its slash.
    if !uri.path().ends_with('/') || !uri.path().starts_with("/api/") {
        return None;
    }
    let path = uri.path().trim_end_matches('/');
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(text).ok();
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    Some(request)
}

/// Bounds how many requests are in progress and how long each takes, asks for a key, and observes all of it.
pub(crate) async fn around(
    State(api): State<Api>,
    route: MatchedPath,
    mut request: Request,
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
    let observed = async {
        let response = caught(turn(&api, route.as_str(), &mut request, next)).await;
        let status = response.status().as_u16();
        let seconds = started.elapsed().as_secs_f64();
        tracing::debug!(
            http.response.status_code = status,
            request.duration_seconds = seconds,
            "a request was answered"
        );
        api.metrics.answered(&method, route.as_str(), status, seconds);
        response
    };
    observed.instrument(span).await
}

/// The answer, also when the handler panics.
async fn caught(answer: impl Future<Output = Response>) -> Response {
    AssertUnwindSafe(answer)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| panicked(&*panic))
}

fn panicked(panic: &(dyn Any + Send)) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let words = text.or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = words, "a request handler panicked");
    Error::internal().into_response()
}

async fn turn(api: &Api, route: &str, request: &mut Request, next: Next) -> Response {
    let path = request.uri().path();
    // Probes must be answered however busy the rest is.
    let is_probe = path.starts_with("/health/") || path.starts_with("/api/v1/health");
    let turn = if is_probe { None } else { take_turn(api).await };
    if turn.is_none() && !is_probe {
        let detail = "Too many requests are in progress; try again.";
        return Error::unavailable("overloaded", detail, Duration::from_secs(1)).into_response();
    }
    let answer = allowed(api, route, request, next);
    match tokio::time::timeout(api.settings.request_timeout, answer).await {
        Ok(response) => response,
        Err(_) => {
            let detail = "The request took too long; try again with the same Idempotency-Key.";
            Error::unavailable("request_timeout", detail, Duration::from_secs(1)).into_response()
        }
    }
}

async fn take_turn(api: &Api) -> Option<SemaphorePermit<'_>> {
    // Mostly there is room, and no need for a timer; boxed, since a request's future should stay small.
    if let Ok(turn) = api.requests.try_acquire() {
        return Some(turn);
    }
    let turn = tokio::time::timeout(TURN_WAIT, api.requests.acquire());
    Box::pin(turn).await.ok()?.ok()
}

/// Runs the handler if the request's key allows its route.
async fn allowed(api: &Api, route: &str, request: &mut Request, mut next: Next) -> Response {
    if let Err(error) = auth::authorize(api, route, request).await {
        return error.into_response();
    }
    let tracer = api.tracer.as_ref();
    let mut span = tracer.and_then(|tracer| trace::ingest(tracer, route, request));
    let Ok(response) = next.call(std::mem::take(request)).await;
    if let Some(span) = &mut span {
        span.answered(response.status().as_u16());
    }
    response
}

/// The caller's own id of the request, for logs: printable and short.
fn request_id(headers: &HeaderMap) -> Option<&str> {
    let value = headers
        .get("x-request-id")
        .or_else(|| headers.get("svix-req-id"))?;
    let text = value.to_str().ok()?;
    (text.len() <= REQUEST_ID_CHARS_MAX).then_some(text)
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use http::StatusCode;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_with_an_empty_500() {
        let answers = [
            caught(async { panic!("words") }).await,
            caught(async { panic!("{}", 1) }).await,
        ];
        for answer in answers {
            assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
            let body = to_bytes(answer.into_body(), 100).await;
            assert_eq!(&body.unwrap_or_else(|error| panic!("{error}"))[..], b"{}");
        }
        let answer = caught(async { StatusCode::ACCEPTED.into_response() }).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
    }
}

//! The ingest span of requests that send messages. It is made behind authorization, so that nobody else can fill the
//! exporter's queue.

use axum::extract::Request;
use http::{HeaderValue, Method};
use postrider_telemetry::trace::{Span, Tracer};

use crate::api::message::{TRACEPARENT, traceparent};

const ROUTES: [&str; 3] = [
    "/api/v1/app/{app_id}/msg",
    "/api/v1/app/{app_id}/msg/batch",
    "/api/v1/app/{app_id}/msg/raw",
];

/// A span of the request that continues the producer's trace. The handlers find the span in the place of the
/// producer's `traceparent`.
pub(crate) fn ingest(tracer: &Tracer, route: &str, request: &mut Request) -> Option<Span> {
    if request.method() != Method::POST || !ROUTES.contains(&route) {
        return None;
    }
    let producer = traceparent(request.headers());
    let span = tracer.ingest("POST", route, producer.as_deref())?;
    if let Ok(value) = HeaderValue::try_from(span.traceparent()) {
        request.headers_mut().insert(TRACEPARENT, value);
    }
    Some(span)
}

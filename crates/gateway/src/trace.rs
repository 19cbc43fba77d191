//! The ingest span of requests that send messages. The layer is there only when traces are on, behind authorization,
//! so that nobody else can fill the exporter's queue.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderValue, Method};
use postrider_telemetry::trace::Tracer;

use crate::api::message::{TRACEPARENT, traceparent};

const ROUTES: [&str; 3] = [
    "/api/v1/app/{app_id}/msg",
    "/api/v1/app/{app_id}/msg/batch",
    "/api/v1/app/{app_id}/msg/raw",
];

/// Wraps the request in a span that continues the producer's trace. The handlers find the span in the place of the
/// producer's `traceparent`.
pub(crate) async fn ingest(
    State(tracer): State<Tracer>,
    route: MatchedPath,
    mut request: Request,
    next: Next,
) -> Response {
    if request.method() != Method::POST || !ROUTES.contains(&route.as_str()) {
        return next.run(request).await;
    }
    let producer = traceparent(request.headers());
    let Some(mut span) = tracer.ingest("POST", route.as_str(), producer.as_deref()) else {
        return next.run(request).await;
    };
    if let Ok(value) = HeaderValue::try_from(span.traceparent()) {
        request.headers_mut().insert(TRACEPARENT, value);
    }
    let response = next.run(request).await;
    span.answered(response.status().as_u16());
    response
}

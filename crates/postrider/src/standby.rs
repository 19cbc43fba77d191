//! The HTTP side of a process without the gateway's role: health checks, and metrics for every process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use postrider_broker::{Broker, Health};
use postrider_store::SharedStore;
use postrider_telemetry::Metrics;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// How often the store is looked at.
const POLL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Seen {
    broker: Arc<dyn Broker>,
    store_up: Arc<AtomicBool>,
    /// Whether it ever was: a role that has read its configuration goes on without the store.
    store_seen: Arc<AtomicBool>,
}

/// Liveness and readiness of a worker or a ledger. Readiness names what is missing.
pub(crate) fn router(store: SharedStore, broker: Arc<dyn Broker>, stop: CancellationToken) -> Router {
    let seen = Seen {
        broker,
        store_up: Arc::new(AtomicBool::new(false)),
        store_seen: Arc::new(AtomicBool::new(false)),
    };
    tokio::spawn(stop.run_until_cancelled_owned(poll(store, seen.clone())));
    Router::new()
        .route("/health/live", get(|| async { StatusCode::OK }))
        .route("/health/ready", get(ready))
        .route("/api/v1/health", get(health))
        .with_state(seen)
}

async fn poll(store: SharedStore, seen: Seen) {
    loop {
        // A store is not relied on before its schema was seen to fit.
        let look = if seen.store_seen.load(Ordering::Relaxed) {
            store.ping()
        } else {
            store.check_schema()
        };
        let up = matches!(tokio::time::timeout(PING_TIMEOUT, look).await, Ok(Ok(())));
        seen.store_up.store(up, Ordering::Relaxed);
        seen.store_seen.fetch_or(up, Ordering::Relaxed);
        tokio::time::sleep(POLL).await;
    }
}

impl Seen {
    fn is_ready(&self) -> bool {
        *self.broker.health().borrow() == Health::Up && self.store_seen.load(Ordering::Relaxed)
    }
}

async fn ready(State(seen): State<Seen>) -> impl IntoResponse {
    let broker = match *seen.broker.health().borrow() {
        Health::Up => "up",
        Health::Blocked => "blocked",
        Health::Down => "down",
    };
    let store = if seen.store_up.load(Ordering::Relaxed) {
        "up"
    } else {
        "down"
    };
    let status = if seen.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        Json(json!({"ready": seen.is_ready(), "broker": broker, "store": store})),
    )
}

async fn health(State(seen): State<Seen>) -> StatusCode {
    if seen.is_ready() {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// `/metrics` in the OpenMetrics format, on a listener of its own.
pub(crate) fn metrics_router(metrics: Arc<Metrics>) -> Router {
    let render = move || {
        let text = metrics.render();
        async move { ([(header::CONTENT_TYPE, postrider_telemetry::CONTENT_TYPE)], text) }
    };
    Router::new().route("/metrics", get(render))
}

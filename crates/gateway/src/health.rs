//! Liveness and readiness, and the gate before new messages.
//!
//! A gateway is ready when it can accept messages: the broker confirms, the journal has room, and configuration can be
//! read. A gateway that has once read from the store stays ready without it: what is cached goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use postrider_broker::{Health, Queue};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::state::Api;

const POLL: Duration = Duration::from_secs(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// What the background poll last saw.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    journal_depth: AtomicU64,
    store_up: AtomicBool,
    store_seen: AtomicBool,
    limits_up: AtomicBool,
}

/// State of what the gateway needs.
#[derive(Debug, Serialize)]
struct ReadyOut {
    ready: bool,
    broker: &'static str,
    journal: &'static str,
    store: &'static str,
    limits: &'static str,
}

/// Looks at the dependencies once a second until cancelled.
pub(crate) async fn poll(api: Api, cancel: CancellationToken) {
    loop {
        let seen = &api.readiness;
        // A store is not relied on before its schema was seen to fit.
        let look = if seen.store_seen.load(Ordering::Relaxed) {
            api.store.ping()
        } else {
            api.store.check_schema()
        };
        let (depth, store, limits) = tokio::join!(
            tokio::time::timeout(CALL_TIMEOUT, api.broker.depth(Queue::Journal)),
            tokio::time::timeout(CALL_TIMEOUT, look),
            tokio::time::timeout(CALL_TIMEOUT, api.limits.ping()),
        );
        // Without an answer the last depth stands: health tells when the broker itself is away.
        if let Ok(Ok(depth)) = depth {
            seen.journal_depth.store(depth, Ordering::Relaxed);
        }
        let store_up = matches!(store, Ok(Ok(())));
        seen.store_up.store(store_up, Ordering::Relaxed);
        seen.store_seen.fetch_or(store_up, Ordering::Relaxed);
        seen.limits_up
            .store(matches!(limits, Ok(Ok(()))), Ordering::Relaxed);
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// Refuses a message before any work is done for it when it could not be published.
pub(crate) fn may_accept(api: &Api) -> Result<(), Error> {
    let health = *api.broker_health.borrow();
    let refuse = |code, detail: &str| Err(Error::unavailable(code, detail, Duration::from_secs(1)));
    match health {
        Health::Down => refuse("broker_unavailable", "The broker is unreachable; try again."),
        Health::Blocked => refuse("broker_blocked", "The broker takes no messages now; try again."),
        Health::Up if journal_full(api) => refuse(
            "journal_full",
            "Too much waits to be recorded; try again when the backlog is smaller.",
        ),
        Health::Up => Ok(()),
    }
}

fn journal_full(api: &Api) -> bool {
    api.readiness.journal_depth.load(Ordering::Relaxed) > api.settings.journal_depth_max
}

fn look(api: &Api) -> ReadyOut {
    let broker = match *api.broker_health.borrow() {
        Health::Up => "up",
        Health::Blocked => "blocked",
        Health::Down => "down",
    };
    let full = journal_full(api);
    let seen = &api.readiness;
    ReadyOut {
        ready: broker == "up" && !full && seen.store_seen.load(Ordering::Relaxed),
        broker,
        journal: if full { "full" } else { "up" },
        store: up(seen.store_up.load(Ordering::Relaxed)),
        limits: up(seen.limits_up.load(Ordering::Relaxed)),
    }
}

fn up(is_up: bool) -> &'static str {
    if is_up { "up" } else { "down" }
}

/// The process runs.
pub(crate) async fn live() -> StatusCode {
    StatusCode::OK
}

/// 200 or 503, with the state of each dependency.
pub(crate) async fn ready(State(api): State<Api>) -> Response {
    let out = look(&api);
    let status = if out.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(out)).into_response()
}

/// Ready to accept messages.
#[utoipa::path(
    method(get, head), path = "/api/v1/health", tag = "Health", operation_id = "v1.health.get", security(()),
    responses((status = 204, description = "Ready"), (status = 503, description = "Not ready", body = crate::error::ErrorOut))
)]
pub(crate) async fn health(State(api): State<Api>) -> Result<StatusCode, Error> {
    if look(&api).ready {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Error::unavailable(
        "not_ready",
        "Not ready; `/health/ready` names what is missing.",
        Duration::from_secs(1),
    ))
}

/// Ready to accept messages; the same as `/api/v1/health`.
#[utoipa::path(
    method(get, head), path = "/api/v1/health/ping", tag = "Health", operation_id = "v1.health.ping", security(()),
    responses((status = 204, description = "Ready"), (status = 503, description = "Not ready", body = crate::error::ErrorOut))
)]
pub(crate) async fn ping(state: State<Api>) -> Result<StatusCode, Error> {
    health(state).await
}

//! The gateway: the HTTP API, and the way of a message from a request to a confirmed 202.
//!
//! - [`Gateway`] owns the state, the background tasks and the [`axum::Router`]; the binary serves it.
//! - `accept` is the hot path; `admit` and `cache` make it one batched trip to the shared limits and no SQL.
//! - `api` has the operations, one file a group; `auth` says who may do what; `idempotency` makes repeats safe.
//! - `openapi` describes all of it, generated from the code.
//!
//! Guarantees: 202 means that the message and each of its deliveries are safe (guarantee 1). Without the broker, or
//! with a journal above its limit, a new message is refused with 503 before any work (6, 7). Without the shared
//! limits messages are accepted without idempotency and quotas (5). Without the store, cached applications go on (6).
//! Bodies, lists, waits and requests in progress are bounded by [`Settings`] (8).

mod absent;
mod accept;
mod admit;
mod api;
mod auth;
mod body;
mod cache;
mod error;
mod gather;
mod goes_on;
mod health;
mod idempotency;
mod metrics;
mod middleware;
mod once;
mod openapi;
mod page;
mod settings;
mod state;
mod stored_claims;
mod trace;
mod validate;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse as _;
use axum::routing::get;
use postrider_broker::{Broker, JobPublisher, JournalPublisher};
use postrider_egress::Policy;
use postrider_limits::{EVERY_APP, SharedLimits};
use postrider_store::SharedStore;
use postrider_telemetry::trace::Tracer;
use tokio::sync::{Mutex, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::admit::Admitter;
use crate::auth::Authenticator;
use crate::cache::AppCache;
use crate::error::Error;
use crate::health::Readiness;
use crate::state::{Api, Inner};
use crate::stored_claims::StoredClaims;

pub use crate::api::status::{EndpointStatus, QueueStatus, ServiceStatus, Status, WaitingStatus};
pub use crate::metrics::{DOCS, Metrics};
pub use crate::settings::Settings;

const CONFIG_LOCKS: usize = 64;

/// What the gateway works with.
pub struct Deps {
    /// Configuration and the record.
    pub store: SharedStore,
    /// Claims, quotas, versions.
    pub limits: SharedLimits,
    /// For its health and the journal's depth.
    pub broker: Arc<dyn Broker>,
    /// Publishes deliveries.
    pub jobs: JobPublisher,
    /// Publishes facts.
    pub journal: JournalPublisher,
    /// Which URLs an endpoint may have.
    pub policy: Policy,
    /// What only a gateway counts; register it first.
    pub metrics: Arc<Metrics>,
    /// What every process counts.
    pub telemetry: Arc<postrider_telemetry::Metrics>,
    /// Makes spans, when traces are on.
    pub tracer: Option<Tracer>,
}

/// A gateway: its router and its background tasks.
pub struct Gateway {
    api: Api,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Gateway {
    /// Starts the background tasks; call it inside a Tokio runtime.
    pub fn new(settings: Settings, deps: Deps) -> Self {
        let tasks = TaskTracker::new();
        let cancel = CancellationToken::new();
        let body_memory = settings.body_memory_max.max(settings.batch_bytes_max) / body::RESERVE_UNIT;
        let api = Api::new(Inner {
            cache: AppCache::new(
                Arc::clone(&deps.store),
                Arc::clone(&deps.limits),
                settings.cache_bytes_max,
                Arc::clone(&deps.telemetry),
            ),
            stored_claims: StoredClaims::new(Arc::clone(&deps.store), tasks.clone()),
            admitter: Admitter::new(Arc::clone(&deps.limits), tasks.clone(), Arc::clone(&deps.metrics)),
            auth: Authenticator::new(Arc::clone(&deps.store), settings.admin_key.as_ref()),
            readiness: Readiness::default(),
            body_memory: Arc::new(Semaphore::new(body_memory.min(Semaphore::MAX_PERMITS))),
            requests: Semaphore::new(settings.requests_max.min(Semaphore::MAX_PERMITS)),
            started_at: tokio::time::Instant::now(),
            old_claims_end: tokio::sync::OnceCell::new(),
            config_locks: (0..CONFIG_LOCKS).map(|_| Mutex::new(())).collect(),
            store: deps.store,
            limits: deps.limits,
            broker_health: deps.broker.health(),
            broker: deps.broker,
            jobs: deps.jobs,
            journal: deps.journal,
            policy: deps.policy,
            metrics: deps.metrics,
            telemetry: deps.telemetry,
            tracer: deps.tracer,
            tasks: tasks.clone(),
            settings,
        });
        tasks.spawn(health::poll(api.clone(), cancel.clone()));
        tasks.spawn(hear_changes(api.clone(), cancel.clone()));
        tasks.spawn(follow_changes(api.clone(), cancel.clone()));
        Self { api, cancel, tasks }
    }

    /// The whole HTTP surface: `/api/v1`, `/health`, `/docs`.
    pub fn router(&self) -> Router {
        let (operations, openapi) = openapi::described();
        let around = axum::middleware::from_fn_with_state(self.api.clone(), middleware::around);
        let routes = operations
            .route("/health/live", get(health::live))
            .route("/health/ready", get(health::ready))
            .merge(openapi::pages(&openapi))
            .route_layer(around)
            .method_not_allowed_fallback(async || Error::method_not_allowed())
            .with_state(self.api.clone());
        let known = routes.clone().fallback(async || Error::not_found());
        // Only a path that no route has can have a slash too many: all others go straight to their route.
        routes.fallback(move |request: Request| {
            let known = known.clone();
            async move {
                match middleware::trim_slash(request) {
                    Some(trimmed) => known.oneshot(trimmed).await.into_response(),
                    None => Error::not_found().into_response(),
                }
            }
        })
    }

    /// The OpenAPI description of the API.
    pub fn openapi() -> utoipa::openapi::OpenApi {
        openapi::described().1
    }

    /// Ends the background tasks; call it when no request is in progress any more.
    pub async fn shutdown(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Has changed applications read again that nobody announced.
async fn follow_changes(api: Api, cancel: CancellationToken) {
    cancel.run_until_cancelled(api.cache.follow()).await;
}

/// Has changed applications read again as soon as that is announced.
async fn hear_changes(api: Api, cancel: CancellationToken) {
    let mut changes = api.limits.invalidations();
    loop {
        let change = tokio::select! {
            () = cancel.cancelled() => return,
            change = changes.recv() => change,
        };
        match change {
            Ok(app) if app != EVERY_APP => api.cache.expire(app),
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => api.cache.expire_all(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

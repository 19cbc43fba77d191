//! What every handler shares.

use std::sync::Arc;

use postrider_broker::{Broker, Health, JobPublisher, JournalPublisher};
use postrider_egress::Policy;
use postrider_limits::SharedLimits;
use postrider_model::{AppId, Application, Endpoint, EndpointId, UnixMillis};
use postrider_store::{AppRef, EndpointRef, SharedStore};
use tokio::sync::{Mutex, MutexGuard, OnceCell, Semaphore, watch};
use tokio_util::task::TaskTracker;

use crate::admit::Admitter;
use crate::auth::Authenticator;
use crate::cache::AppCache;
use crate::error::Error;
use crate::health::Readiness;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::stored_claims::StoredClaims;
use crate::validate::{NAME_CHARS_MAX, is_name};

/// Shared state; cheap to clone.
#[derive(Clone)]
pub(crate) struct Api(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) settings: Settings,
    pub(crate) store: SharedStore,
    pub(crate) limits: SharedLimits,
    pub(crate) broker: Arc<dyn Broker>,
    /// Its health, subscribed to once: each request looks at it.
    pub(crate) broker_health: watch::Receiver<Health>,
    pub(crate) jobs: JobPublisher,
    pub(crate) journal: JournalPublisher,
    pub(crate) policy: Policy,
    pub(crate) cache: AppCache,
    pub(crate) admitter: Admitter,
    pub(crate) stored_claims: StoredClaims,
    pub(crate) auth: Authenticator,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) telemetry: Arc<postrider_telemetry::Metrics>,
    pub(crate) tracer: Option<postrider_telemetry::trace::Tracer>,
    pub(crate) body_memory: Arc<Semaphore>,
    pub(crate) requests: Semaphore,
    pub(crate) tasks: TaskTracker,
    pub(crate) started_at: tokio::time::Instant,
    /// When the last of the claims ends that were in the store at the first look (embedded set-up only).
    pub(crate) old_claims_end: OnceCell<UnixMillis>,
    /// One writer at a time reads, changes and writes back an application's configuration in this process.
    pub(crate) config_locks: Box<[Mutex<()>]>,
}

impl std::ops::Deref for Api {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Api {
    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// The application of a path parameter, read from the store.
    pub(crate) async fn app(&self, id_or_uid: &str) -> Result<Application, Error> {
        let app = app_ref(id_or_uid).ok_or_else(Error::not_found)?;
        self.store.app(&app).await?.ok_or_else(Error::not_found)
    }

    /// The endpoint of a path parameter, read from the store.
    pub(crate) async fn endpoint(&self, app: AppId, id_or_uid: &str) -> Result<Endpoint, Error> {
        let endpoint = endpoint_ref(id_or_uid).ok_or_else(Error::not_found)?;
        let found = self.store.endpoint(app, &endpoint).await?;
        found.ok_or_else(Error::not_found)
    }

    /// Application and endpoint of two path parameters.
    pub(crate) async fn app_endpoint(
        &self,
        app: &str,
        endpoint: &str,
    ) -> Result<(Application, Endpoint), Error> {
        let app = self.app(app).await?;
        let endpoint = self.endpoint(app.id, endpoint).await?;
        Ok((app, endpoint))
    }

    /// The same for what sends to the endpoint: 400 while it is disabled.
    pub(crate) async fn enabled_endpoint(
        &self,
        app: &str,
        endpoint: &str,
    ) -> Result<(Application, Endpoint), Error> {
        let found = self.app_endpoint(app, endpoint).await?;
        check_enabled(&found.1)?;
        Ok(found)
    }

    /// Held while an application's configuration is read, changed and written back.
    pub(crate) async fn config_lock(&self, app: AppId) -> MutexGuard<'_, ()> {
        let index = usize::from(app.as_bytes()[15]) % self.config_locks.len();
        self.config_locks[index].lock().await
    }

    /// After a commit: tells all caches, this process' own first.
    pub(crate) async fn changed(&self, app: AppId, version: u64) {
        self.cache.expire(app);
        if self.limits.publish_version(app, version).await.is_ok() {
            return;
        }
        // Caches are at most 10 s old in any case; this only shortens the wait.
        let limits = Arc::clone(&self.limits);
        self.tasks.spawn(async move {
            let mut pause = std::time::Duration::from_millis(100);
            for _ in 0..5 {
                tokio::time::sleep(pause).await;
                if limits.publish_version(app, version).await.is_ok() {
                    return;
                }
                pause *= 2;
            }
            tracing::warn!(app.id = %app, config.version = version, "the new configuration version could not be announced");
        });
    }
}

/// An application's id or uid; `None` when it can be neither.
pub(crate) fn app_ref(text: &str) -> Option<AppRef> {
    if text.starts_with(AppId::PREFIX) {
        return text.parse().ok().map(AppRef::Id);
    }
    is_name(text, NAME_CHARS_MAX).then(|| AppRef::Uid(text.to_owned()))
}

/// An endpoint's id or uid; `None` when it can be neither.
pub(crate) fn endpoint_ref(text: &str) -> Option<EndpointRef> {
    if text.starts_with(EndpointId::PREFIX) {
        return text.parse().ok().map(EndpointRef::Id);
    }
    is_name(text, NAME_CHARS_MAX).then(|| EndpointRef::Uid(text.to_owned()))
}

/// 400 while the endpoint is disabled.
pub(crate) fn check_enabled(endpoint: &Endpoint) -> Result<(), Error> {
    if endpoint.disabled {
        let detail = "The endpoint is disabled; enable it first.";
        return Err(Error::bad_request("endpoint_disabled", detail));
    }
    Ok(())
}

//! Configuration as a worker needs it: cached by application, checked against the version that every gate brings.
//!
//! A cached snapshot is used while its version is the one that the limits know. Another version means reload; no
//! version (the limits were lost) means reload if the snapshot is older than [`MAX_AGE`]. Either way a snapshot older
//! than that is renewed beside the traffic. With the store away the cached one goes on serving.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use moka::future::Cache;
use parking_lot::Mutex;
use postrider_egress::{BlockedReason, Policy};
use postrider_limits::SharedLimits;
use postrider_model::{AppId, AppSnapshot, Endpoint, EndpointId, HeaderNames, UnixMillis};
use postrider_signature::{HeaderStyle, Signer, SigningSecret};
use postrider_store::{AppRef, SharedStore, StoreError};
use postrider_telemetry::Metrics;
use postrider_telemetry::labels::{self, CacheResult};
use secrecy::ExposeSecret;

/// Oldest a snapshot may be while the store answers.
const MAX_AGE: Duration = Duration::from_secs(10);
/// How long a cached snapshot serves after the store did not answer.
const TRUST_WITHOUT_STORE: Duration = Duration::from_secs(1);
/// Endpoints in cached snapshots, over all applications.
const CACHED_ENDPOINTS_MAX: u64 = 200_000;
/// Prepared targets.
const CACHED_TARGETS_MAX: u64 = 100_000;

/// An endpoint made ready for the hot path.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) endpoint: Arc<Endpoint>,
    /// Where to, or why the policy forbids it now: then every attempt is a blocked one, on record.
    pub(crate) url: Result<postrider_egress::Target, BlockedReason>,
    pub(crate) style: HeaderStyle,
    pub(crate) signer: Signer,
    pub(crate) headers: HeaderMap,
    /// Groups endpoints by destination for the per-host limits.
    pub(crate) host: u64,
    /// When the next secret expires.
    valid_until: Option<UnixMillis>,
}

/// Why an endpoint cannot be made ready. A failure of ours: it was checked when it was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error("the endpoint's URL does not parse")]
    Url(#[source] url::ParseError),
    #[error("a signing secret is not usable")]
    Secret(#[source] postrider_signature::SecretError),
    #[error("too many signing secrets")]
    Secrets(#[source] postrider_signature::TooManyKeys),
}

#[derive(Debug)]
struct Cached {
    snapshot: Option<Arc<AppSnapshot>>,
    loaded_at: Instant,
    /// It changed since, or may have.
    doubted: AtomicBool,
    /// It was kept because the store was away, which need not be asked again before this.
    trusted_until: Option<Instant>,
}

impl Cached {
    fn new(snapshot: Option<Arc<AppSnapshot>>, loaded_at: Instant) -> Self {
        Self {
            snapshot,
            loaded_at,
            doubted: AtomicBool::new(false),
            trusted_until: None,
        }
    }
}

pub(crate) struct ConfigCache {
    store: SharedStore,
    limits: SharedLimits,
    policy: Policy,
    metrics: Arc<Metrics>,
    apps: Cache<AppId, Arc<Cached>>,
    targets: moka::sync::Cache<EndpointId, Arc<Target>>,
    /// Applications that are being renewed: one look at the store each, however much traffic asks for it.
    renewing: Mutex<HashSet<AppId>>,
}

impl ConfigCache {
    pub(crate) fn new(
        store: SharedStore,
        limits: SharedLimits,
        policy: Policy,
        metrics: Arc<Metrics>,
    ) -> Self {
        let apps = Cache::builder()
            .max_capacity(CACHED_ENDPOINTS_MAX)
            .weigher(|_, cached: &Arc<Cached>| {
                let endpoints = cached
                    .snapshot
                    .as_ref()
                    .map_or(0, |snapshot| snapshot.endpoints.len());
                u32::try_from(endpoints).unwrap_or(u32::MAX).saturating_add(1)
            })
            .build();
        Self {
            store,
            limits,
            policy,
            metrics,
            apps,
            targets: moka::sync::Cache::new(CACHED_TARGETS_MAX),
            renewing: Mutex::default(),
        }
    }

    /// Has an application read again whose configuration changed. What is cached stays, for a store that is away.
    pub(crate) async fn invalidate(&self, app: AppId) {
        if let Some(cached) = self.apps.get(&app).await {
            cached.doubted.store(true, Ordering::Release);
        }
    }

    /// Has everything read again: invalidations may have been missed.
    pub(crate) fn invalidate_all(&self) {
        for (_, cached) in &self.apps {
            cached.doubted.store(true, Ordering::Release);
        }
    }

    /// The application's snapshot at `version` or later; `None` when there is no such application. An error only when
    /// the store is away and nothing is cached.
    pub(crate) async fn snapshot(
        self: &Arc<Self>,
        app: AppId,
        version: Option<u64>,
    ) -> Result<Option<Arc<AppSnapshot>>, StoreError> {
        let Some(cached) = self.apps.get(&app).await else {
            self.metrics.cache(labels::Cache::Worker, CacheResult::Miss);
            return Ok(self.load(app, version).await?.snapshot.clone());
        };
        let old = cached.loaded_at.elapsed() > MAX_AGE;
        let current = match (version, &cached.snapshot) {
            _ if cached.trusted_until.is_some_and(|until| Instant::now() < until) => true,
            _ if cached.doubted.load(Ordering::Acquire) => false,
            (Some(version), Some(snapshot)) => snapshot.version >= version,
            // No application comes back after it was deleted, so its absence need not be looked up for every frame.
            (None, _) | (Some(_), None) => !old,
        };
        let result = if current {
            CacheResult::Hit
        } else {
            CacheResult::Miss
        };
        self.metrics.cache(labels::Cache::Worker, result);
        if current {
            if old {
                self.renew(app);
            }
            return Ok(cached.snapshot.clone());
        }
        self.apps.invalidate(&app).await;
        match self.load(app, version).await {
            Ok(loaded) => Ok(loaded.snapshot.clone()),
            Err(error) if error.is_transient() => {
                tracing::warn!(app.id = %app, "the store is away; going on with cached configuration");
                let kept = Cached {
                    trusted_until: Some(Instant::now() + TRUST_WITHOUT_STORE),
                    ..Cached::new(cached.snapshot.clone(), cached.loaded_at)
                };
                self.apps.insert(app, Arc::new(kept)).await;
                Ok(cached.snapshot.clone())
            }
            Err(error) => Err(error),
        }
    }

    /// Loads once, however many ask.
    async fn load(&self, app: AppId, version: Option<u64>) -> Result<Arc<Cached>, StoreError> {
        let loading = async {
            let snapshot = self.store.snapshot(&AppRef::Id(app)).await?.map(Arc::new);
            self.metrics.config_reloaded();
            if version.is_none()
                && let Some(snapshot) = &snapshot
            {
                // The limits forgot the version: tell them, or everybody would reload for ever.
                let _ = self.limits.publish_version(app, snapshot.version).await;
            }
            Ok::<_, StoreError>(Arc::new(Cached::new(snapshot, Instant::now())))
        };
        self.apps.try_get_with(app, loading).await.map_err(unshare)
    }

    fn renew(self: &Arc<Self>, app: AppId) {
        if !self.renewing.lock().insert(app) {
            return;
        }
        let cache = self.clone();
        tokio::spawn(async move {
            if let Ok(snapshot) = cache.store.snapshot(&AppRef::Id(app)).await {
                cache.metrics.config_reloaded();
                let cached = Cached::new(snapshot.map(Arc::new), Instant::now());
                cache.apps.insert(app, Arc::new(cached)).await;
            }
            cache.renewing.lock().remove(&app);
        });
    }

    /// The endpoint of a snapshot, made ready; cached as long as it is the same and its secrets hold.
    pub(crate) fn target(
        &self,
        endpoint: &Arc<Endpoint>,
        now: UnixMillis,
    ) -> Result<Arc<Target>, PrepareError> {
        if let Some(target) = self.targets.get(&endpoint.id)
            && Arc::ptr_eq(&target.endpoint, endpoint)
            && target.valid_until.is_none_or(|until| now < until)
        {
            return Ok(target);
        }
        let target = Arc::new(prepare(endpoint, &self.policy, now)?);
        self.targets.insert(endpoint.id, target.clone());
        Ok(target)
    }
}

/// The error of a shared load, for one of the many who waited for it.
fn unshare(error: Arc<StoreError>) -> StoreError {
    Arc::try_unwrap(error).unwrap_or_else(|shared| {
        if shared.is_transient() {
            StoreError::Unavailable(Box::new(shared))
        } else {
            StoreError::Rejected(Box::new(shared))
        }
    })
}

fn prepare(endpoint: &Arc<Endpoint>, policy: &Policy, now: UnixMillis) -> Result<Target, PrepareError> {
    let url = url::Url::parse(&endpoint.url).map_err(PrepareError::Url)?;
    let unexpired = endpoint
        .secrets
        .iter()
        .filter(|secret| secret.expires_at.is_none_or(|at| at > now));
    let keys = unexpired
        .clone()
        .map(|secret| SigningSecret::parse(secret.text.expose_secret()).map_err(PrepareError::Secret))
        .collect::<Result<Vec<_>, _>>()?;
    let mut headers = HeaderMap::with_capacity(endpoint.headers.len() + 4);
    for (name, value) in &endpoint.headers {
        // Checked when they were written; one that does not parse now is left out rather than stopping deliveries.
        if let (Ok(name), Ok(mut value)) = (
            HeaderName::try_from(name.as_str()),
            HeaderValue::try_from(value.expose_secret()),
        ) {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    Ok(Target {
        host: host_of(&url),
        url: postrider_egress::Target::new(&url, policy),
        style: match endpoint.header_names {
            HeaderNames::Standard => HeaderStyle::Standard,
            HeaderNames::Svix => HeaderStyle::Svix,
        },
        signer: Signer::new(keys).map_err(PrepareError::Secrets)?,
        headers,
        valid_until: unexpired.filter_map(|secret| secret.expires_at).min(),
        endpoint: endpoint.clone(),
    })
}

/// A number for the URL's scheme, host and port.
fn host_of(url: &url::Url) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (url.scheme(), url.host_str(), url.port_or_known_default()).hash(&mut hasher);
    hasher.finish()
}

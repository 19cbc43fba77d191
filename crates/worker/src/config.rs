//! Configuration as a worker needs it: cached by application, checked against the version that every gate brings.
//!
//! A cached snapshot is used while its version is the one that the limits know. Another version means reload; no
//! version (the limits were lost) means reload if the snapshot is older than [`MAX_AGE`]. Either way a snapshot older
//! than that is renewed beside the traffic. The age counts from when the snapshot was last known to be current: a
//! [`Follower`] asks the store for what changed, for all of them at once, so that one that does not change is read every
//! few minutes only.
//!
//! With the store away the cached one goes on serving, and nobody waits for long: there is one look at the store at a
//! time for each application, however many ask; each waits for it [`LOOK_MAX`] at most; and after one that failed
//! nobody waits at all, while looks go on beside the traffic, about one a second, until one succeeds.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use moka::sync::Cache;
use parking_lot::Mutex;
use postrider_egress::Policy;
use postrider_limits::SharedLimits;
use postrider_model::{AppId, AppSnapshot, Endpoint, EndpointId, UnixMillis};
use postrider_store::{Follower, SharedStore, StoreError};
use postrider_telemetry::Metrics;
use postrider_telemetry::labels::{self, CacheResult};
use tokio::time::Instant;
use tokio::time::error::Elapsed;

use crate::target::{PrepareError, Target, prepare};

/// Oldest a snapshot may be while the store answers.
const MAX_AGE: Duration = Duration::from_secs(10);
/// How long a look that failed stands for all that ask.
const TRUST_WITHOUT_STORE: Duration = Duration::from_secs(1);
/// Longest that a delivery waits for a look at the store.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// Looks that failed, kept so that not everybody looks again.
const FAILED_MAX: u64 = 100_000;
/// Bytes of cached snapshots, over all applications: those of 200,000 endpoints or so.
const CACHED_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes of prepared targets: 100,000 or so. Each keeps its endpoint, and its headers once more.
const TARGET_BYTES_MAX: u64 = 256 * 1024 * 1024;

#[derive(Debug)]
struct Cached {
    snapshot: Option<Arc<AppSnapshot>>,
    loaded_at: Instant,
    /// It changed since, or may have.
    doubted: AtomicBool,
}

/// A look that failed.
#[derive(Clone, Debug)]
struct Failed {
    error: Arc<StoreError>,
    at: Instant,
}

/// A look at the store that all wait for who ask meanwhile.
type Look = Shared<BoxFuture<'static, Result<Arc<Cached>, Arc<StoreError>>>>;

/// Reads an application's configuration from the store.
pub(crate) type Read =
    Box<dyn Fn(AppId) -> BoxFuture<'static, Result<Option<AppSnapshot>, StoreError>> + Send + Sync>;

pub(crate) struct ConfigCache {
    read: Read,
    limits: SharedLimits,
    policy: Policy,
    metrics: Arc<Metrics>,
    apps: Cache<AppId, Arc<Cached>>,
    targets: Cache<EndpointId, Arc<Target>>,
    /// Looks under way.
    looks: Mutex<HashMap<AppId, Look>>,
    /// Applications whose last look failed.
    failed: Cache<AppId, Failed>,
    follower: Follower,
}

impl ConfigCache {
    pub(crate) fn new(read: Read, limits: SharedLimits, policy: Policy, metrics: Arc<Metrics>) -> Self {
        let apps = Cache::builder()
            .max_capacity(CACHED_BYTES_MAX)
            .weigher(|_, cached: &Arc<Cached>| {
                let bytes = cached
                    .snapshot
                    .as_ref()
                    .map_or(0, |snapshot| snapshot.memory_bytes());
                // One that is heavier than the cache would never be kept, and read anew for each frame.
                let weight = (size_of::<Cached>() + bytes) as u64;
                u32::try_from(weight.min(CACHED_BYTES_MAX / 4)).unwrap_or(u32::MAX)
            })
            .build();
        let targets = Cache::builder()
            .max_capacity(TARGET_BYTES_MAX)
            .weigher(|_, target: &Arc<Target>| {
                let bytes = size_of::<Target>() + 2 * target.endpoint.memory_bytes();
                u32::try_from(bytes).unwrap_or(u32::MAX)
            })
            .build();
        Self {
            read,
            limits,
            policy,
            metrics,
            apps,
            targets,
            looks: Mutex::default(),
            failed: Cache::new(FAILED_MAX),
            follower: Follower::default(),
        }
    }

    /// Has an application read again whose configuration changed. What is cached stays, for a store that is away.
    pub(crate) fn invalidate(&self, app: AppId) {
        if let Some(cached) = self.apps.get(&app) {
            cached.doubted.store(true, Ordering::Release);
        }
    }

    /// Has everything read again: invalidations may have been missed.
    pub(crate) fn invalidate_all(&self) {
        for (_, cached) in &self.apps {
            cached.doubted.store(true, Ordering::Release);
        }
    }

    /// Has what changed read again, whoever changed it, until it is dropped.
    pub(crate) async fn follow(&self, store: &SharedStore) {
        let changed = |app, version| {
            if let Some(cached) = self.apps.get(&app)
                && cached
                    .snapshot
                    .as_ref()
                    .is_none_or(|snapshot| snapshot.version < version)
            {
                cached.doubted.store(true, Ordering::Release);
            }
        };
        self.follower.run(store, changed).await;
    }

    fn serves(&self, cached: &Cached, version: Option<u64>) -> bool {
        if cached.doubted.load(Ordering::Acquire) {
            return false;
        }
        match (version, &cached.snapshot) {
            (Some(version), Some(snapshot)) => snapshot.version >= version,
            // No application comes back after it was deleted, so its absence need not be looked up for every frame.
            (None, _) | (Some(_), None) => !self.is_old(cached),
        }
    }

    /// The absence of an application is not followed.
    fn is_old(&self, cached: &Cached) -> bool {
        let age = match cached.snapshot {
            Some(_) => self.follower.age(cached.loaded_at),
            None => cached.loaded_at.elapsed(),
        };
        age > MAX_AGE
    }

    /// The application's snapshot at `version` or later; `None` when there is no such application. While the store is
    /// away, what is cached. Takes [`LOOK_MAX`] at most.
    ///
    /// # Errors
    /// When the store is away, or slow, and nothing is cached.
    pub(crate) async fn snapshot(
        self: &Arc<Self>,
        app: AppId,
        version: Option<u64>,
    ) -> Result<Option<Arc<AppSnapshot>>, StoreError> {
        let cached = self.apps.get(&app);
        let result = match &cached {
            Some(cached) if self.serves(cached, version) => CacheResult::Hit,
            _ => CacheResult::Miss,
        };
        self.metrics.cache(labels::Cache::Worker, result);
        match cached {
            Some(cached) if result == CacheResult::Hit => {
                if self.is_old(&cached) || Follower::is_due(app, cached.loaded_at) {
                    drop(self.look(app, version));
                }
                Ok(cached.snapshot.clone())
            }
            Some(cached) => self.renewed(app, version, &cached).await,
            None => self.first(app, version).await,
        }
    }

    /// What the store has now; what is cached if it does not tell.
    async fn renewed(
        self: &Arc<Self>,
        app: AppId,
        version: Option<u64>,
        cached: &Cached,
    ) -> Result<Option<Arc<AppSnapshot>>, StoreError> {
        if let Some(failed) = self.failed.get(&app) {
            if failed.at.elapsed() >= TRUST_WITHOUT_STORE {
                drop(self.look(app, version));
            }
            return Ok(cached.snapshot.clone());
        }
        let waited = tokio::time::timeout(LOOK_MAX, async {
            let found = self.look(app, version).await?;
            if self.serves(&found, version) {
                return Ok(found);
            }
            // That look had begun before the change.
            self.look(app, version).await
        });
        match waited.await {
            Ok(Ok(found)) => Ok(found.snapshot.clone()),
            Ok(Err(error)) if !error.is_transient() => Err(unshare(error)),
            Ok(Err(_)) => {
                tracing::warn!(app.id = %app, "the store is away; going on with cached configuration");
                Ok(cached.snapshot.clone())
            }
            Err(elapsed) => {
                tracing::warn!(app.id = %app, "the store is slow; going on with cached configuration");
                self.gave_up(app, elapsed);
                Ok(cached.snapshot.clone())
            }
        }
    }

    /// What the store has, when nothing is cached.
    async fn first(
        self: &Arc<Self>,
        app: AppId,
        version: Option<u64>,
    ) -> Result<Option<Arc<AppSnapshot>>, StoreError> {
        if let Some(failed) = self.failed.get(&app)
            && failed.at.elapsed() < TRUST_WITHOUT_STORE
        {
            return Err(unshare(failed.error));
        }
        match tokio::time::timeout(LOOK_MAX, self.look(app, version)).await {
            Ok(Ok(found)) => Ok(found.snapshot.clone()),
            Ok(Err(error)) => Err(unshare(error)),
            Err(elapsed) => Err(unshare(self.gave_up(app, elapsed))),
        }
    }

    /// A look takes too long to wait for: nobody else does, until it ends well.
    fn gave_up(&self, app: AppId, elapsed: Elapsed) -> Arc<StoreError> {
        self.fail(app, StoreError::Unavailable(Box::new(elapsed)))
    }

    fn fail(&self, app: AppId, error: StoreError) -> Arc<StoreError> {
        let error = Arc::new(error);
        let failed = Failed {
            error: error.clone(),
            at: Instant::now(),
        };
        self.failed.insert(app, failed);
        error
    }

    /// The look at the store that is under way, or a new one. It ends by itself, whoever waits for it: the store bounds
    /// it.
    fn look(self: &Arc<Self>, app: AppId, version: Option<u64>) -> Look {
        let mut looks = self.looks.lock();
        if let Some(look) = looks.get(&app) {
            return look.clone();
        }
        let cache = self.clone();
        let looking = tokio::spawn(async move {
            let found = AssertUnwindSafe(cache.load(app, version)).catch_unwind().await;
            let found = found.unwrap_or_else(|_| Err(unavailable()));
            cache.looks.lock().remove(&app);
            found
        });
        let look = async move { looking.await.unwrap_or_else(|_| Err(unavailable())) };
        let look = look.boxed().shared();
        looks.insert(app, look.clone());
        look
    }

    async fn load(&self, app: AppId, version: Option<u64>) -> Result<Arc<Cached>, Arc<StoreError>> {
        let loaded_at = Instant::now();
        match (self.read)(app).await {
            Ok(snapshot) => {
                self.metrics.config_reloaded();
                if version.is_none()
                    && let Some(snapshot) = &snapshot
                {
                    // The limits forgot the version: tell them, or everybody would go by age alone.
                    let _ = self.limits.publish_version(app, snapshot.version).await;
                }
                let cached = Arc::new(Cached {
                    snapshot: snapshot.map(Arc::new),
                    loaded_at,
                    doubted: AtomicBool::new(false),
                });
                self.apps.insert(app, cached.clone());
                self.failed.invalidate(&app);
                Ok(cached)
            }
            Err(error) => Err(self.fail(app, error)),
        }
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

fn unavailable() -> Arc<StoreError> {
    Arc::new(StoreError::Unavailable(
        "a look at the store ended without an answer".into(),
    ))
}

/// The error of a look, for one of the many who waited for it.
fn unshare(error: Arc<StoreError>) -> StoreError {
    Arc::try_unwrap(error).unwrap_or_else(|shared| {
        if shared.is_transient() {
            StoreError::Unavailable(Box::new(shared))
        } else {
            StoreError::Rejected(Box::new(shared))
        }
    })
}

#[cfg(test)]
mod tests;

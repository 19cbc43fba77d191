//! The cached configuration of applications: what makes accepting a message free of SQL.
//!
//! Guarantees: an entry is at most [`AGE_MAX`] old unless the store is away, and is read again at once when a newer
//! version is known. The age counts from when the entry was last known to be current: a [`Follower`] asks the store for
//! what changed, for all entries at once, so that one that does not change is read every few minutes only. Reads of one
//! application are single-flight. With the store away a cached application goes on with what is cached, and no request
//! waits for the store once its absence was noticed; one that is not cached cannot be served. That there is no such
//! application counts for a second ([`Absent`]). Memory is bounded by an estimate of each snapshot's size.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use postrider_limits::SharedLimits;
use postrider_model::{AppId, AppSnapshot};
use postrider_store::{AppRef, Follower, SharedStore, StoreError};
use postrider_telemetry::Metrics;
use postrider_telemetry::labels::{self, CacheResult};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::absent::Absent;

/// Oldest that an entry may be while the store answers.
pub(crate) const AGE_MAX: Duration = Duration::from_secs(10);
/// From this age on a used entry is read again in the background, so that a busy application never waits.
const AGE_REFRESH: Duration = Duration::from_secs(5);
/// How often an application whose version nobody knows is read again.
const AGE_UNKNOWN: Duration = Duration::from_secs(1);
/// How long a read may take.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);
const STRIPES: usize = 256;

/// A snapshot and when it was read.
pub(crate) struct Entry {
    pub(crate) snapshot: AppSnapshot,
    read_at: Instant,
    expired: AtomicBool,
    refreshing: AtomicBool,
}

/// Applications by id, and ids by uid. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AppCache(Arc<Inner>);

struct Inner {
    store: SharedStore,
    limits: SharedLimits,
    metrics: Arc<Metrics>,
    entries: Cache<AppId, Arc<Entry>>,
    uids: Cache<String, AppId>,
    absent: Absent,
    /// Readers of the same application queue up here; the first one reads for all.
    stripes: Box<[Mutex<()>]>,
    follower: Follower,
    /// When a read last failed because the store was away; `None` again once one succeeds.
    away: parking_lot::Mutex<Option<Instant>>,
}

impl AppCache {
    pub(crate) fn new(
        store: SharedStore,
        limits: SharedLimits,
        bytes_max: u64,
        metrics: Arc<Metrics>,
    ) -> Self {
        let entries = Cache::builder()
            .max_capacity(bytes_max)
            .weigher(move |_, entry: &Arc<Entry>| {
                // One that is heavier than the cache would never be kept, and read anew for each request.
                let weight = (entry.snapshot.memory_bytes() as u64).min(bytes_max / 4);
                u32::try_from(weight).unwrap_or(u32::MAX)
            })
            .build();
        let uids = Cache::builder().max_capacity(100_000).build();
        let stripes = (0..STRIPES).map(|_| Mutex::new(())).collect();
        Self(Arc::new(Inner {
            store,
            limits,
            metrics,
            entries,
            uids,
            absent: Absent::new(),
            stripes,
            follower: Follower::default(),
            away: parking_lot::Mutex::default(),
        }))
    }

    /// What is cached, however old.
    pub(crate) fn peek(&self, app: &AppRef) -> Option<Arc<Entry>> {
        match app {
            AppRef::Id(id) => self.0.entries.get(id),
            AppRef::Uid(uid) => {
                let entry = self.0.entries.get(&self.0.uids.get(uid)?)?;
                // Uids can move from one application to another.
                (entry.snapshot.application.uid.as_deref() == Some(uid)).then_some(entry)
            }
        }
    }

    /// The application, cached or read now; `None` when there is none, or was none within the last second.
    pub(crate) async fn get(&self, app: &AppRef) -> Result<Option<Arc<Entry>>, StoreError> {
        match self.peek(app) {
            Some(entry) => {
                self.count(CacheResult::Hit);
                Ok(Some(entry))
            }
            None if self.0.absent.has(app) => {
                self.count(CacheResult::Hit);
                Ok(None)
            }
            None => {
                self.count(CacheResult::Miss);
                // Boxed, here and below, since the future of a request that finds its application should stay small.
                Box::pin(self.load(app, Instant::now())).await
            }
        }
    }

    /// The entry, or a newer one if it is too old. `version` is the newest known one.
    pub(crate) async fn fresh(
        &self,
        app: &AppRef,
        entry: Arc<Entry>,
        version: Option<u64>,
    ) -> Result<Option<Arc<Entry>>, StoreError> {
        let age = self.0.follower.age(entry.read_at);
        let outdated = match version {
            Some(version) => version > entry.snapshot.version || age >= AGE_MAX,
            None => age >= AGE_UNKNOWN,
        };
        if !outdated && !entry.expired.load(Ordering::Acquire) {
            if age >= AGE_REFRESH || Follower::is_due(entry.snapshot.application.id, entry.read_at) {
                self.refresh(app, &entry);
            }
            return Ok(Some(entry));
        }
        if self.0.away.lock().is_some() {
            self.refresh(app, &entry);
            return Ok(Some(entry));
        }
        self.count(CacheResult::Miss);
        match Box::pin(self.load(app, Instant::now())).await {
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "going on with cached configuration");
                Ok(Some(entry))
            }
            other => other,
        }
    }

    /// Reads the application beside the traffic, unless that is being done.
    fn refresh(&self, app: &AppRef, entry: &Arc<Entry>) {
        if entry.refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (cache, app, entry) = (self.clone(), app.clone(), Arc::clone(entry));
        tokio::spawn(async move {
            if cache.load(&app, Instant::now()).await.is_err() {
                entry.refreshing.store(false, Ordering::Release);
            }
        });
    }

    fn count(&self, result: CacheResult) {
        self.0.metrics.cache(labels::Cache::Gateway, result);
    }

    /// Has what changed read again, whoever changed it, until it is dropped.
    pub(crate) async fn follow(&self) {
        let changed = |app, version| {
            if let Some(entry) = self.0.entries.get(&app)
                && entry.snapshot.version < version
            {
                entry.expired.store(true, Ordering::Release);
            }
        };
        self.0.follower.run(&self.0.store, changed).await;
    }

    /// There is an application of this name now, whoever made it: it is found from now on.
    pub(crate) fn named(&self, uid: &str) {
        self.0.absent.remove(uid);
    }

    /// Has the application read again at its next use.
    pub(crate) fn expire(&self, app: AppId) {
        if let Some(entry) = self.0.entries.get(&app) {
            entry.expired.store(true, Ordering::Release);
        }
    }

    /// Has every application read again at its next use.
    pub(crate) fn expire_all(&self) {
        for (_, entry) in &self.0.entries {
            entry.expired.store(true, Ordering::Release);
        }
    }

    /// Reads the application unless somebody did since `asked_at`.
    async fn load(&self, app: &AppRef, asked_at: Instant) -> Result<Option<Arc<Entry>>, StoreError> {
        let mut hasher = DefaultHasher::new();
        app.hash(&mut hasher);
        let stripe = usize::try_from(hasher.finish() % 256).unwrap_or(0);
        let _turn = self.0.stripes[stripe].lock().await;
        if let Some(entry) = self.peek(app)
            && entry.read_at >= asked_at
            && !entry.expired.load(Ordering::Acquire)
        {
            return Ok(Some(entry));
        }
        if self.0.absent.has_since(app, asked_at) {
            return Ok(None);
        }
        // Who queued up behind a read that failed does not wait for another one.
        if self.0.away.lock().is_some_and(|failed| failed >= asked_at) {
            return Err(StoreError::Unavailable(
                "the store did not answer just now".into(),
            ));
        }
        let began = self.0.absent.begin();
        let read = tokio::time::timeout(LOAD_TIMEOUT, self.0.store.snapshot(app)).await;
        let read = read.unwrap_or_else(|elapsed| Err(StoreError::Unavailable(Box::new(elapsed))));
        match &read {
            Ok(_) => *self.0.away.lock() = None,
            Err(error) if error.is_transient() => *self.0.away.lock() = Some(Instant::now()),
            Err(_) => {}
        }
        let read = read?;
        self.0.metrics.config_reloaded();
        let Some(snapshot) = read else {
            self.forget(app);
            self.0.absent.add(app, began);
            return Ok(None);
        };
        let id = snapshot.application.id;
        let version = snapshot.version;
        if let Some(uid) = &snapshot.application.uid {
            self.0.uids.insert(uid.clone(), id);
        }
        let entry = Arc::new(Entry {
            snapshot,
            read_at: began.at,
            expired: AtomicBool::new(false),
            refreshing: AtomicBool::new(false),
        });
        self.0.entries.insert(id, Arc::clone(&entry));
        // Who reads a version tells the others: after a flush of the shared state it is unknown there, and until somebody
        // reads it or changes it, followers tell.
        let limits = Arc::clone(&self.0.limits);
        tokio::spawn(async move { limits.publish_version(id, version).await });
        Ok(Some(entry))
    }

    fn forget(&self, app: &AppRef) {
        match app {
            AppRef::Id(id) => self.0.entries.invalidate(id),
            AppRef::Uid(uid) => self.0.uids.invalidate(uid),
        }
    }
}

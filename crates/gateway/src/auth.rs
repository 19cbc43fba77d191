//! Who may do what.
//!
//! Every path under `/api/v1` needs a key except health and the API's own description. The rule for a route is in one
//! place ([`needed`]), and what it does not know needs an admin key. Keys are looked up by their SHA-256, so nothing
//! is compared that an attacker could learn byte by byte; the configured admin key is compared in constant time.
//! An application's own key leads to that application alone, also while a uid moves from it to another one ([`OwnApp`]).
//! A looked-up key is trusted for [`TRUST`] (so long may a revoked key go on), longer only while the store is away.

use std::time::Duration;

use axum::RequestExt as _;
use axum::extract::{RawPathParams, Request};
use http::{HeaderMap, Method, header};
use moka::sync::Cache;
use parking_lot::Mutex;
use postrider_model::AppId;
use postrider_secrets::{KeyHash, Scope};
use postrider_store::{AppRef, SharedStore, StoredKey};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;

use crate::error::Error;
use crate::state::{Api, app_ref};

/// How long a looked-up key is trusted.
const TRUST: Duration = Duration::from_secs(10);
/// How long it is remembered, for when the store is away.
const REMEMBER: Duration = Duration::from_secs(3600);
/// How long a known key is looked up, and how long the store is left alone when it gave no answer.
const LOOK_UP: Duration = Duration::from_secs(1);
const KEYS_MAX: u64 = 10_000;
/// Longest key that is looked at, in bytes.
const KEY_BYTES_MAX: usize = 512;

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// No key.
    Nothing,
    /// An admin key.
    Admin,
    /// An admin key, or one of the application in the path.
    App,
    /// As before, or an ingest key.
    Ingest,
}

/// The one rule. `route` is the template.
pub(crate) fn needed(method: &Method, route: &str) -> Need {
    const APP: &str = "/api/v1/app/{app_id}";
    if !route.starts_with("/api/") {
        return Need::Nothing;
    }
    match route {
        "/api/v1/health" | "/api/v1/health/ping" | "/api/v1/openapi.json" => Need::Nothing,
        "/api/v1/app/{app_id}/msg" | "/api/v1/app/{app_id}/msg/batch" | "/api/v1/app/{app_id}/msg/raw"
            if method == Method::POST =>
        {
            Need::Ingest
        }
        // An application's own key must not raise the application's quota nor delete it.
        APP if method == Method::GET || method == Method::HEAD => Need::App,
        _ if route.strip_prefix(APP).is_some_and(|rest| rest.starts_with('/')) => Need::App,
        _ => Need::Admin,
    }
}

/// Looks keys up.
pub(crate) struct Authenticator {
    store: SharedStore,
    admin: Option<KeyHash>,
    known: Cache<KeyHash, (Option<Scope>, Instant)>,
    /// When a look-up last began that the store did not answer; `None` again once it answers.
    away: Mutex<Option<Instant>>,
}

impl Authenticator {
    pub(crate) fn new(store: SharedStore, admin_key: Option<&SecretString>) -> Self {
        Self {
            store,
            admin: admin_key.map(|key| KeyHash::of(key.expose_secret())),
            known: Cache::builder()
                .max_capacity(KEYS_MAX)
                .time_to_live(REMEMBER)
                .build(),
            away: Mutex::default(),
        }
    }

    /// The scope of the key in these headers.
    pub(crate) async fn scope(&self, headers: &HeaderMap) -> Result<Scope, Error> {
        let value = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let (scheme, key) = value
            .and_then(|value| value.split_once(' '))
            .ok_or_else(Error::unauthenticated)?;
        let key = key.trim();
        // Schemes are case-insensitive (RFC 9110, 11.1).
        if !scheme.eq_ignore_ascii_case("bearer") || key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(Error::unauthenticated());
        }
        let hash = KeyHash::of(key);
        if self.admin == Some(hash) {
            return Ok(Scope::Admin);
        }
        self.lookup(hash).await?.ok_or_else(Error::unauthenticated)
    }

    async fn lookup(&self, hash: KeyHash) -> Result<Option<Scope>, Error> {
        let known = self.known.get(&hash);
        if let Some((scope, at)) = &known
            && at.elapsed() < TRUST
        {
            return Ok(scope.clone());
        }
        let read = match known {
            None => self.store.key_by_hash(&hash.0).await?,
            Some((scope, _)) => match self.ask_again(&hash).await? {
                Some(read) => read,
                None => return Ok(scope),
            },
        };
        let live = read.filter(|stored| stored.revoked_at.is_none());
        let scope = live.and_then(|stored| stored.key.scope.parse::<Scope>().ok());
        self.known.insert(hash, (scope.clone(), Instant::now()));
        Ok(scope)
    }

    /// Asks the store for a key that is known; `None` when it does not answer. One request a second waits for a store that is away, and for
    /// a second.
    async fn ask_again(&self, hash: &KeyHash) -> Result<Option<Option<StoredKey>>, Error> {
        let began = Instant::now();
        {
            let mut away = self.away.lock();
            match *away {
                Some(since) if began.duration_since(since) < LOOK_UP => return Ok(None),
                Some(_) => *away = Some(began),
                None => {}
            }
        }
        match tokio::time::timeout(LOOK_UP, self.store.key_by_hash(&hash.0)).await {
            Ok(Ok(read)) => {
                *self.away.lock() = None;
                Ok(Some(read))
            }
            Ok(Err(error)) if !error.is_transient() => Err(error.into()),
            Ok(Err(_)) | Err(_) => {
                *self.away.lock() = Some(Instant::now());
                Ok(None)
            }
        }
    }

    /// Forgets all keys, so that this process sees a revocation at once.
    pub(crate) fn forget(&self) {
        self.known.invalidate_all();
    }
}

/// Lets a request pass whose key allows its route, with the key's [`Scope`] as an extension.
pub(crate) async fn authorize(api: &Api, route: &str, request: &mut Request) -> Result<(), Error> {
    let need = needed(request.method(), route);
    if need == Need::Nothing {
        return Ok(());
    }
    let scope = api.auth.scope(request.headers()).await?;
    let allowed = match (&scope, need) {
        (_, Need::Nothing) | (Scope::Admin, _) | (Scope::Ingest, Need::Ingest) => true,
        (Scope::App(own), Need::App | Need::Ingest) => {
            // Boxed, since a request's future should stay small.
            let own = Box::pin(own_app(api, own, request)).await?;
            own.is_some_and(|own| {
                request.extensions_mut().insert(own);
                true
            })
        }
        (Scope::Ingest, Need::Admin | Need::App) | (Scope::App(_), Need::Admin) => false,
    };
    if !allowed {
        return Err(Error::forbidden());
    }
    request.extensions_mut().insert(scope);
    Ok(())
}

/// The application of the key, for which the path names it by id or uid: what the handler takes for the path's (see
/// [`crate::api::Path`]), since a uid may have moved to another one when the handler looks for it.
#[derive(Clone, Copy)]
pub(crate) struct OwnApp(pub(crate) AppId);

/// The key's own application, if the path names it.
async fn own_app(api: &Api, own: &str, request: &mut Request) -> Result<Option<OwnApp>, Error> {
    let Ok(own) = own.parse::<AppId>() else {
        return Ok(None);
    };
    Ok(names_app(api, own, request).await?.then_some(OwnApp(own)))
}

/// Whether the path's application, by id or uid, is this one.
async fn names_app(api: &Api, own: AppId, request: &mut Request) -> Result<bool, Error> {
    let params = request.extract_parts::<RawPathParams>().await.ok();
    let mut params = params.iter().flat_map(|params| params.iter());
    let app = params.find(|(name, _)| *name == "app_id");
    match app.and_then(|(_, text)| app_ref(text)) {
        None => Ok(false),
        Some(AppRef::Id(id)) => Ok(id == own),
        Some(uid @ AppRef::Uid(_)) => {
            let Some(entry) = api.cache.get(&uid).await? else {
                return Ok(false);
            };
            // A uid can change hands: no older answer than the store's.
            let fresh = api.cache.fresh(&uid, entry, None).await?;
            Ok(fresh.is_some_and(|entry| entry.snapshot.application.id == own))
        }
    }
}

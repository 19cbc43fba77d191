//! The shared state of all processes in Redis (7.0 or newer) or Valkey, on one node or a cluster.
//!
//! Each call is one round trip for its whole batch: plain commands, and script calls, one a slot in a cluster, one in
//! all on a single node, sent together. (An `admit` that finds keys held makes a second trip for them, and a `finish` that
//! opens or closes breakers two.) The server's clock is the only one, but for the list of open breakers, which is for
//! people. Everything expires.
//! A call that is not answered in time fails and is never repeated here: it may have been done. Nothing here must
//! survive; wrap it into [`postrider_limits::Fallback`] to go on without it.
//!
//! Changed configurations are told by publish/subscribe. After a lost subscription receivers get
//! [`postrider_limits::EVERY_APP`]; whoever misses a message learns the version from `admit` or `gate`.

use std::sync::Arc;
use std::time::Duration;

use postrider_limits::{BreakerSettings, LimitsError};
use postrider_model::AppId;
use redis::RedisResult;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::connection::{Connection, Servers};
use crate::keys::Keys;
use crate::scripts::Scripts;

mod admit;
mod answer;
mod batch;
mod calls;
mod changes;
mod connection;
mod finish;
mod keys;
mod scripts;

/// How long [`RedisLimits::connect`] waits for a server that may be starting.
const FIRST_CONTACT: Duration = Duration::from_secs(5);
/// Changes that a receiver may be behind before it must assume that all applications changed.
const CHANGES: usize = 1024;

/// How to reach the servers. `Debug` hides the URL, which may hold a password.
#[derive(Clone)]
pub struct Settings {
    /// `redis://` or `rediss://` (TLS, with the system's roots). Several separated by commas, or one that starts
    /// with `redis+cluster://` or `rediss+cluster://`, are nodes of a cluster.
    pub url: String,
    /// What all keys start with; no braces.
    pub prefix: String,
    /// How long a call may take.
    pub timeout: Duration,
    /// When breakers open. All processes should agree.
    pub breaker: BreakerSettings,
}

impl Settings {
    /// Prefix `postrider`, 250 ms, the default breaker.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            prefix: "postrider".to_owned(),
            timeout: Duration::from_millis(250),
            breaker: BreakerSettings::default(),
        }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}

/// Settings that cannot work. A server that does not answer is no error.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no URL.
    #[error("no redis url")]
    NoUrl,
    /// The prefix would break the placement of keys in a cluster.
    #[error("the prefix of redis keys must not hold braces")]
    Prefix,
    /// A URL is malformed.
    #[error("not a redis url")]
    Url(#[source] redis::RedisError),
    /// The client refuses the settings.
    #[error("redis settings")]
    Settings(#[source] redis::RedisError),
}

/// [`postrider_limits::Limits`] in Redis.
pub struct RedisLimits {
    connection: Connection,
    keys: Keys,
    scripts: Scripts,
    timeout: Duration,
    changes: broadcast::Sender<AppId>,
    _following: JoinSet<()>,
}

impl RedisLimits {
    /// Connects, and waits a few seconds for the first answer. Without one it goes on trying in the background, and
    /// calls fail meanwhile.
    ///
    /// # Errors
    /// Only for settings that cannot work.
    pub async fn connect(settings: Settings) -> Result<Arc<Self>, ConnectError> {
        if settings.prefix.contains(['{', '}']) {
            return Err(ConnectError::Prefix);
        }
        let servers = Servers::parse(&settings.url)?;
        let connection = Connection::open(&servers, settings.timeout)?;
        let keys = Keys::new(&settings.prefix);
        let changes = broadcast::channel(CHANGES).0;
        let (subscribed, first_contact) = oneshot::channel();
        let mut following = JoinSet::new();
        following.spawn(changes::follow(
            servers.nodes,
            keys.channel(),
            changes.clone(),
            subscribed,
        ));
        let scripts = Scripts::new(&settings.breaker);
        let limits = Self {
            connection,
            keys,
            scripts,
            timeout: settings.timeout,
            changes,
            _following: following,
        };
        if limits.first_contact(first_contact).await.is_err() {
            tracing::warn!("limits: redis does not answer yet, going on without it");
        }
        Ok(Arc::new(limits))
    }

    async fn first_contact(
        &self,
        subscribed: oneshot::Receiver<()>,
    ) -> Result<(), tokio::time::error::Elapsed> {
        let until = Instant::now() + FIRST_CONTACT;
        let answered = async {
            while let Err(error) = self.call("ping", self.connection.send(&redis::cmd("PING"))).await {
                tracing::debug!(%error, "limits: waiting for redis");
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout_at(until, answered).await?;
        tokio::time::timeout_at(until, subscribed).await.map(drop)
    }

    /// Runs a call within the time limit.
    async fn call<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, LimitsError> {
        match timeout(self.timeout, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(LimitsError {
                message: format!("redis refused or lost {what}"),
                source: Some(error.into()),
            }),
            Err(elapsed) => {
                let message = format!(
                    "redis did not answer {what} within {} ms",
                    self.timeout.as_millis()
                );
                Err(LimitsError {
                    message,
                    source: Some(elapsed.into()),
                })
            }
        }
    }
}

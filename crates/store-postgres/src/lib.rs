//! The store on Postgres 15 and later, for the scaled-out set-up.
//!
//! The files are named after the traits of `postrider-store`, as in the SQLite adapter: `config`, `log`, `record`,
//! `waiting`, `upkeep`; `schema` migrates and makes the days' partitions.
//!
//! Cast: a small pool for writers (recorder, scheduler, upkeep) whose planner is told to use indexes, because a new
//! day's tables are empty when their plans are made; and a pool for the API's reads with a short statement limit.
//! Both connect when first used, so a role starts while the database is away and heals when it returns.
//!
//! Guarantees:
//! - Every call ends within its limit, also when the server hangs; what failed for lack of a server is
//!   [`StoreError::Unavailable`], a statement that the server stopped at its limit [`StoreError::Slow`], what the server
//!   refuses to store [`StoreError::Rejected`].
//! - Several recorders may run: a delivery that another one moved meanwhile makes the batch start again. Rows that
//!   wait are locked in id order. Locks are taken in this order: waiting, delivery, application, endpoint, backlog,
//!   counter; scheduler and sweep lock the backlog first and then pass over what others hold. A deadlock that remains
//!   is retried by the recorder and is `Unavailable` to others.
//! - Endpoint headers, endpoint secrets and payloads are sealed by the keyring, bound to the row that holds them.
//! - Text with NUL, which Postgres cannot hold, is stored with U+FFFD in its place; bytes are stored as they are.

mod calls;
mod config;
mod error;
mod import;
mod log;
mod record;
mod reseal;
mod row;
mod schema;
mod seal;
mod upkeep;
mod waiting;

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use postrider_secrets::Keyring;
use postrider_store::StoreError;
use postrider_store::fold::FoldSettings;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgConnection, PgPool};

use crate::calls::Calls;
use crate::error::Fail;
use crate::schema::Days;
use crate::seal::Sealer;

pub use crate::import::{Import, ImportError};

/// What the store needs to know.
#[derive(Clone)]
pub struct Settings {
    /// `postgres://user:password@host/database?sslmode=…`
    pub url: SecretString,
    /// Connections for the API's reads.
    pub read_connections: u32,
    /// Connections for recorder, scheduler, upkeep and configuration writes.
    pub write_connections: u32,
    /// How long a call waits for a connection.
    pub acquire_timeout: Duration,
    /// Limit of one statement of a read.
    pub read_timeout: Duration,
    /// Limit of one statement of a write, and of a whole call.
    pub write_timeout: Duration,
    /// An endpoint that has done nothing but fail for so long is disabled.
    pub disable_after: Duration,
    /// Seals secrets and payloads.
    pub keyring: Arc<Keyring>,
}

impl Settings {
    /// The defaults: 10 connections for reads, 6 for writes, 5 s for a connection and for a read, 30 s for a write,
    /// endpoints disabled after 5 days.
    pub fn new(url: SecretString, keyring: Arc<Keyring>) -> Self {
        Self {
            url,
            read_connections: 10,
            write_connections: 6,
            acquire_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(30),
            disable_after: Duration::from_secs(5 * 24 * 3600),
            keyring,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("read_connections", &self.read_connections)
            .field("write_connections", &self.write_connections)
            .field("acquire_timeout", &self.acquire_timeout)
            .field("read_timeout", &self.read_timeout)
            .field("write_timeout", &self.write_timeout)
            .field("disable_after", &self.disable_after)
            .finish_non_exhaustive()
    }
}

/// The store. Shared by all of a process' roles.
pub struct PostgresStore {
    read: PgPool,
    write: PgPool,
    reads: Calls,
    writes: Calls,
    options: PgConnectOptions,
    sealer: Sealer,
    days: Days,
    /// Whether this process looked at the server's room for locks.
    has_seen_locks: AtomicBool,
    fold: FoldSettings,
    read_limit: Duration,
    write_limit: Duration,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// A store that connects when it is first used. Must be called inside a Tokio runtime.
    ///
    /// # Errors
    /// `Rejected` when the URL is not one of Postgres.
    pub fn connect(settings: Settings) -> Result<Arc<Self>, StoreError> {
        let options = PgConnectOptions::from_str(settings.url.expose_secret())
            .map_err(|error| StoreError::Rejected(Box::new(error)))?
            .application_name("postrider")
            .statement_cache_capacity(256);
        let pool = |connections: u32, session: String| {
            PgPoolOptions::new()
                .max_connections(connections.max(1))
                .acquire_timeout(settings.acquire_timeout)
                .after_connect(move |connection, _| {
                    let session = session.clone();
                    Box::pin(async move {
                        sqlx::raw_sql(sqlx::AssertSqlSafe(session))
                            .execute(connection)
                            .await
                            .map(drop)
                    })
                })
                .after_release(|connection, _| Box::pin(answers(connection)))
                .connect_lazy_with(options.clone())
        };
        Ok(Arc::new(Self {
            read: pool(settings.read_connections, read_session(settings.read_timeout)),
            write: pool(settings.write_connections, write_session(settings.write_timeout)),
            reads: Calls::default(),
            writes: Calls::default(),
            sealer: Sealer::new(settings.keyring),
            days: Days::default(),
            has_seen_locks: AtomicBool::new(false),
            fold: FoldSettings {
                disable_after: settings.disable_after,
            },
            read_limit: settings.acquire_timeout + settings.read_timeout,
            write_limit: settings.acquire_timeout + settings.write_timeout,
            options,
        }))
    }

    /// A read, bounded also when the server does not even refuse.
    async fn reading<T>(&self, work: impl Future<Output = Result<T, Fail>>) -> Result<T, StoreError> {
        let _call = self.reads.enter();
        within(self.read_limit, work).await
    }

    /// A read that the traffic of all applications leans on, bounded likewise. It has a connection of those for writes, so
    /// that it stands behind no list of the API.
    async fn leaning<T>(&self, work: impl Future<Output = Result<T, Fail>>) -> Result<T, StoreError> {
        let _call = self.writes.enter();
        within(self.read_limit, work).await
    }

    /// A write, bounded likewise.
    async fn writing<T>(&self, work: impl Future<Output = Result<T, Fail>>) -> Result<T, StoreError> {
        let _call = self.writes.enter();
        within(self.write_limit, work).await
    }
}

/// Whether a connection that comes back still answers. One that was dropped in the middle of a statement whose server
/// vanished would otherwise keep its place in the pool until TCP gives it up, a quarter of an hour later.
async fn answers(connection: &mut PgConnection) -> sqlx::Result<bool> {
    match tokio::time::timeout(RELEASE_LIMIT, connection.ping()).await {
        Ok(answered) => answered.map(|()| true),
        Err(elapsed) => Err(sqlx::Error::Io(elapsed.into())),
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Fail>>) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(StoreError::from),
        Err(elapsed) => Err(StoreError::Unavailable(Box::new(elapsed))),
    }
}

/// How long a connection that comes back to the pool may take for the end of its statement.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);

/// A server notices within a minute that a client's host is gone, whose session may hold a lock.
pub(crate) const KEEP_ALIVE: &str =
    "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3";

fn read_session(limit: Duration) -> String {
    format!(
        "SET statement_timeout = {}; SET idle_in_transaction_session_timeout = 60000; SET jit = off; \
         SET random_page_cost = 1.1; {KEEP_ALIVE}",
        limit.as_millis()
    )
}

/// Writers address rows by key. Their plans are made while a day's tables are still empty, when the planner would
/// choose to scan them, and kept; so scans and the joins that need them are off.
fn write_session(limit: Duration) -> String {
    format!(
        "SET statement_timeout = {}; SET lock_timeout = 10000; SET idle_in_transaction_session_timeout = 60000; \
         SET jit = off; SET random_page_cost = 1.1; SET enable_seqscan = off; SET enable_hashjoin = off; \
         SET enable_mergejoin = off; {KEEP_ALIVE}",
        limit.as_millis()
    )
}

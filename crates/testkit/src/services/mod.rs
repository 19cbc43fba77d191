//! Real RabbitMQ, Redis and Postgres for tests.
//!
//! **Shared servers** ([`rabbitmq`], [`redis`], [`postgres`]) are for tests that only use them. The environment
//! decides first: `POSTRIDER_TEST_AMQP_URL`, `POSTRIDER_TEST_REDIS_URL`, `POSTRIDER_TEST_POSTGRES_URL`, which
//! `cargo xtask test` sets. Without them (a plain `cargo nextest run`) one server of each kind is started for this
//! target directory and used by all test processes; see `shared` for how it is found again and how it ends.
//! Tests keep apart by names: [`unique_name`] for queues and key prefixes, [`PostgresDatabase`] for SQL.
//!
//! **Private servers** ([`RabbitServer`], [`RedisServer`], [`RedisCluster`], [`PostgresServer`]) are for tests that
//! stop, freeze, kill or flush. They die with their value, and with the test process if that is killed.
//!
//! Binaries come from `PATH` and from the places where Debian puts them. Everything listens on 127.0.0.1 only.

mod child;
#[cfg(feature = "harness")]
mod database;
mod host;
mod postgres;
mod probe;
mod rabbitmq;
mod redis;
mod server;
mod shared;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

pub(crate) use child::{Launch, Running};
#[cfg(feature = "harness")]
pub use database::PostgresDatabase;
pub use host::{find_binary, free_port, is_root, target_dir};
pub use postgres::PostgresServer;
pub use rabbitmq::RabbitServer;
pub use redis::{RedisCluster, RedisServer};
pub use server::Server;

/// The environment variable that names an AMQP server for tests.
pub const AMQP_URL: &str = "POSTRIDER_TEST_AMQP_URL";
/// The environment variable that names a Redis server for tests.
pub const REDIS_URL: &str = "POSTRIDER_TEST_REDIS_URL";
/// The environment variable that names a Postgres server for tests; its role must be able to create databases.
pub const POSTGRES_URL: &str = "POSTRIDER_TEST_POSTGRES_URL";

/// The URL of a shared RabbitMQ (`amqp://…`). Never stop it or empty it: other tests use it now.
///
/// # Errors
/// The environment names a server that does not answer, or none could be started.
pub async fn rabbitmq() -> Result<String> {
    match named(AMQP_URL).await? {
        Some(url) => Ok(url),
        None => shared::get("rabbitmq", rabbitmq::prepare).await,
    }
}

/// The URL of a shared Redis (`redis://…`). Never flush it: use a key prefix from [`unique_name`].
///
/// # Errors
/// The environment names a server that does not answer, or none could be started.
pub async fn redis() -> Result<String> {
    match named(REDIS_URL).await? {
        Some(url) => Ok(url),
        None => shared::get("redis", redis::prepare).await,
    }
}

/// The URL of a shared Postgres (`postgres://…/postgres`), as a role that may create databases.
/// Most tests want [`PostgresDatabase`].
///
/// # Errors
/// The environment names a server that does not answer, or none could be started.
pub async fn postgres() -> Result<String> {
    match named(POSTGRES_URL).await? {
        Some(url) => Ok(url),
        None => shared::get("postgres", postgres::prepare).await,
    }
}

/// Whether the server behind an `amqp`, `redis` or `postgres` URL answers its own protocol within two seconds.
/// Over TLS (`amqps`, `rediss`) only the TCP connection is tried.
pub async fn reachable(url: &str) -> bool {
    probe::reachable(url).await.is_ok()
}

/// A name no other test has: `prefix`, then letters, digits and `_` only; fit for queues, keys and SQL identifiers
/// (if `prefix` is). 20 characters longer than `prefix` at most.
pub fn unique_name(prefix: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let micros = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_micros()
        % (1 << 40);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}_{micros:x}{:x}_{count:x}", std::process::id() & 0xffff)
}

async fn named(variable: &str) -> Result<Option<String>> {
    let Some(url) = std::env::var(variable).ok().filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    probe::reachable(&url)
        .await
        .with_context(|| format!("{variable} is set, but its server does not answer"))?;
    Ok(Some(url))
}

//! A database of the test's own in a Postgres server.

use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::time::timeout;

use super::{postgres, unique_name};

const LIMIT: Duration = Duration::from_secs(30);

/// An empty database, dropped with the value, whoever is still connected.
#[derive(Debug)]
pub struct PostgresDatabase {
    server: PgConnectOptions,
    name: String,
    url: String,
}

impl PostgresDatabase {
    /// Makes a database in the shared server.
    ///
    /// # Errors
    /// There is no server, or it refuses.
    pub async fn create() -> Result<Self> {
        Self::create_in(&postgres().await?).await
    }

    /// Makes a database in the server behind `url`.
    ///
    /// # Errors
    /// The server does not answer within 30 s, or refuses.
    pub async fn create_in(url: &str) -> Result<Self> {
        let server: PgConnectOptions = url.parse().context("not a Postgres URL")?;
        let name = unique_name("postrider");
        execute(&server, format!("CREATE DATABASE {name}"))
            .await
            .context("cannot make a database")?;
        let url = server.clone().database(&name).to_url_lossy().to_string();
        Ok(Self { server, name, url })
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        let server = self.server.clone();
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // Drop may run inside a runtime, which cannot wait; a thread of its own can. A failure is the fault of
        // a server that is going away with all its databases.
        let dropper = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.is_ok_and(|runtime| runtime.block_on(execute(&server, statement)).is_ok())
        });
        let _ = dropper.join();
    }
}

async fn execute(server: &PgConnectOptions, statement: String) -> Result<()> {
    let work = async {
        let mut connection = PgConnection::connect_with(server).await?;
        connection.execute(AssertSqlSafe(statement)).await?;
        connection.close().await
    };
    Ok(timeout(LIMIT, work).await.context("Postgres takes too long")??)
}

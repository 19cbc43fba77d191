//! A Postgres with `fsync`, which the servers of the tests go without.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postrider_testkit::services::{find_binary, free_port};
use postrider_testkit::wait::{Poll, wait_for};
use rustix::process::Signal;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use crate::process::{Names, Process, Start};

const LIMIT: Duration = Duration::from_secs(60);
/// Whom it runs as when we are root, which Postgres refuses.
const USER: &str = "postgres";
/// What anybody would set for a server of this kind of load; everything else is as installed.
const SETTINGS: [&str; 5] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "shared_buffers=512MB",
    "max_wal_size=4GB",
];

pub(crate) struct Postgres {
    process: Process,
    port: u16,
    _dir: TempDir,
}

impl Postgres {
    pub(crate) async fn start(names: &Names, log_dir: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("postrider-bench-postgres-")
            .tempdir()?;
        let user = rustix::process::geteuid().is_root().then_some(USER);
        let data = dir.path().join("data");
        std::fs::create_dir(&data)?;
        if let Some(user) = user {
            let chown = Command::new("chown")
                .arg("-R")
                .arg(user)
                .arg(dir.path())
                .status()
                .await?;
            ensure!(chown.success(), "cannot give the data directory to {user}");
        }
        let binary = |name: &str| find_binary(name).with_context(|| format!("`{name}` is not installed"));
        let initdb = Start {
            name: "initdb",
            program: &binary("initdb")?,
            args: [
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
                "-D",
            ]
            .map(Into::into)
            .into_iter()
            .chain([data.clone().into()])
            .collect(),
            env: Vec::new(),
            log: log_dir.join("initdb.log"),
            user,
        };
        Process::start(names, initdb)?.output(LIMIT).await?;
        let port = free_port()?;
        let mut args = vec!["-D".into(), data.into()];
        for setting in SETTINGS
            .map(str::to_owned)
            .into_iter()
            .chain([format!("port={port}")])
        {
            args.extend(["-c".into(), setting.into()]);
        }
        let postgres = Start {
            name: "postgres",
            program: &binary("postgres")?,
            args,
            env: Vec::new(),
            log: log_dir.join("postgres.log"),
            user,
        };
        let mut started = Self {
            process: Process::start(names, postgres)?,
            port,
            _dir: dir,
        };
        started.wait().await?;
        Ok(started)
    }

    /// The URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database and tells its URL.
    pub(crate) async fn database(&self, name: &str) -> Result<String> {
        self.execute(format!("CREATE DATABASE {name}")).await?;
        Ok(self.url(name))
    }

    /// Deletes a database, whoever is still connected to it.
    pub(crate) async fn drop_database(&self, name: &str) -> Result<()> {
        self.execute(format!("DROP DATABASE {name} WITH (FORCE)")).await
    }

    /// Writes what is in memory alone to its place on disk.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        self.execute("CHECKPOINT".to_owned()).await
    }

    async fn execute(&self, statement: String) -> Result<()> {
        let mut connection = connect(&self.url("postgres")).await?;
        connection.execute(AssertSqlSafe(statement)).await?;
        connection.close().await?;
        Ok(())
    }

    /// Ends it in good order.
    pub(crate) async fn stop(self) -> Result<()> {
        self.process.stop_with(Signal::INT).await
    }

    async fn wait(&mut self) -> Result<()> {
        let url = self.url("postgres");
        wait_for("Postgres to answer", LIMIT, async || {
            self.process.check()?;
            Ok(match connect(&url).await {
                Ok(_) => Poll::Ready(()),
                Err(error) => Poll::NotYet(format!("{error:#}")),
            })
        })
        .await
    }
}

/// A connection of our own, to count with.
pub(crate) async fn connect(url: &str) -> Result<PgConnection> {
    let options: PgConnectOptions = url.parse().context("not a Postgres URL")?;
    let options = options.disable_statement_logging();
    timeout(LIMIT, PgConnection::connect_with(&options))
        .await
        .context("Postgres does not answer")?
        .context("cannot connect")
}

//! Private Postgres servers. As root they run as `postgres` or `nobody`, because Postgres refuses root.
//!
//! `fsync` is off: it protects from a power cut, which tests do not stage; a killed server loses nothing by it.

use std::ffi::OsString;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::timeout;

use super::host::{self, User};
use super::server::{Kind, Server};
use super::shared::{Prepared, data_dir, log_in};
use super::{Launch, free_port};

const LIMIT: Duration = Duration::from_secs(60);

/// A Postgres of the test's own: it keeps port and data over restarts. The role is `postgres`, without a password.
pub type PostgresServer = Server<Postgres>;

/// Postgres: `postgres://postgres@127.0.0.1:PORT/postgres`.
#[derive(Debug)]
pub enum Postgres {}

impl Kind for Postgres {
    const NAME: &'static str = "postgres";
    const LIMIT: Duration = LIMIT;
    /// "Fast": running transactions are rolled back.
    const STOP: Signal = Signal::INT;

    fn url(port: u16) -> String {
        format!("postgres://postgres@127.0.0.1:{port}/postgres")
    }
}

impl PostgresServer {
    /// Makes a database cluster and starts it; takes 2 s or so.
    ///
    /// # Errors
    /// Postgres is not installed or does not answer within 60 s.
    pub async fn start() -> Result<Self> {
        let dir = data_dir("postgres")?;
        let port = free_port()?;
        let launch = initialise(dir.path(), port).await?;
        Self::launched(launch, port, dir).await
    }
}

pub(crate) async fn prepare(dir: &Path) -> Result<Prepared> {
    let port = free_port()?;
    Ok(Prepared {
        launch: initialise(dir, port).await?,
        url: Postgres::url(port),
    })
}

/// Makes the data directory and says how to start a server on it.
async fn initialise(dir: &Path, port: u16) -> Result<Launch> {
    let user = if host::is_root() {
        Some(host::unprivileged_user()?)
    } else {
        None
    };
    let data = dir.join("data");
    std::fs::create_dir(&data)?;
    if let Some(User { uid, gid }) = user {
        chown(&data, Some(uid), Some(gid))?;
    }
    let mut initdb = Command::new(host::need_binary("initdb")?);
    initdb.args([
        "--auth=trust",
        "--username=postgres",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
        "-D",
    ]);
    initdb.arg(&data).current_dir(dir).kill_on_drop(true);
    if let Some(User { uid, gid }) = user {
        initdb.uid(uid).gid(gid);
    }
    let output = timeout(LIMIT, initdb.output())
        .await
        .context("initdb takes too long")??;
    ensure!(
        output.status.success(),
        "initdb: {}",
        String::from_utf8_lossy(&output.stderr)
    );

    let mut args: Vec<OsString> = vec!["-D".into(), data.into()];
    for setting in [
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        "unix_socket_directories=".to_owned(),
        "max_connections=300".to_owned(),
        "fsync=off".to_owned(),
    ] {
        args.extend(["-c".into(), setting.into()]);
    }
    Ok(Launch {
        program: host::need_binary("postgres")?,
        args,
        env: Vec::new(),
        log: log_in(dir),
        user,
        end: Signal::QUIT,
    })
}

//! Private Postgres servers. As root they run as `postgres` or `nobody`, because Postgres refuses root.
//!
//! `fsync` is off: it protects from a power cut, which tests do not stage; a killed server loses nothing by it.

use std::ffi::OsString;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use super::host::{self, User};
use super::shared::{Prepared, data_dir, log_in};
use super::{Launch, Running, free_port, probe};

const LIMIT: Duration = Duration::from_secs(60);

/// A Postgres of the test's own: it keeps port and data over restarts. The role is `postgres`, without a password.
#[derive(Debug)]
pub struct PostgresServer {
    running: Option<Running>,
    launch: Launch,
    port: u16,
    _dir: TempDir,
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
        let mut server = Self {
            running: None,
            launch,
            port,
            _dir: dir,
        };
        server.start_again().await?;
        Ok(server)
    }

    /// `postgres://postgres@127.0.0.1:PORT/postgres`.
    pub fn url(&self) -> String {
        url(self.port)
    }

    /// The port, the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Shuts it down in good order ("fast": running transactions are rolled back). Does nothing if it is down.
    ///
    /// # Errors
    /// It still runs after 60 s.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            running.stop(Signal::INT, LIMIT).await?;
        }
        Ok(())
    }

    /// Ends it at once, without a checkpoint: the next start recovers from the log.
    pub fn kill9(&mut self) {
        self.running = None;
    }

    /// Starts it with the same port and data. Does nothing if it is up.
    ///
    /// # Errors
    /// It does not answer within 60 s.
    pub async fn start_again(&mut self) -> Result<()> {
        if self.running.is_none() {
            let mut running = self.launch.start()?;
            probe::ready(&self.url(), &mut running, LIMIT).await?;
            self.running = Some(running);
        }
        Ok(())
    }
}

pub(crate) async fn prepare(dir: &Path) -> Result<Prepared> {
    let port = free_port()?;
    Ok(Prepared {
        launch: initialise(dir, port).await?,
        url: url(port),
    })
}

fn url(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/postgres")
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

//! The real `postrider` binary as a child process.
//!
//! The binary is `POSTRIDER_BIN`, else the one beside this test's target directory; building it is the business of
//! `cargo xtask test`. The child gets none of the test's own `POSTRIDER_*` variables. Its output goes to a file whose
//! end is printed if the test fails. It dies with its value and with the test process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::services::{Launch, Running, free_port, target_dir};
use crate::wait::{Poll, wait_for};

/// How long a start or a readiness check may take.
const READY_LIMIT: Duration = Duration::from_secs(60);
const HEALTH: &str = "/api/v1/health";

/// What to start; see [`Postrider::builder`].
#[derive(Debug, Default)]
pub struct Builder {
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    data: Option<PathBuf>,
    program: Option<PathBuf>,
}

impl Builder {
    /// The roles, comma-separated; all of them if this is not called.
    #[must_use]
    pub fn role(self, roles: &str) -> Self {
        self.arg("--role").arg(roles)
    }

    /// One more argument after `serve --listen … --data-dir …`.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// One environment variable. `POSTRIDER_EGRESS__ALLOW` is `127.0.0.0/8` unless it is set here.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// The data directory, to share it or keep it; a temporary one by default.
    #[must_use]
    pub fn data_dir(mut self, path: &Path) -> Self {
        self.data = Some(path.to_owned());
        self
    }

    /// Another binary than [`binary`]: that of another version.
    #[must_use]
    pub fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.to_owned());
        self
    }

    /// Starts the process and waits until it says that it is ready.
    ///
    /// # Errors
    /// There is no binary, or it ends or is not ready within 60 s; the error shows its log.
    pub async fn start(self) -> Result<Postrider> {
        let mut process = self.spawn()?;
        process.wait_ready().await?;
        Ok(process)
    }

    /// Starts the process without waiting.
    ///
    /// # Errors
    /// There is no binary, or it cannot be started.
    pub fn spawn(self) -> Result<Postrider> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => binary()?,
        };
        self.spawn_program(program)
    }

    fn spawn_program(self, program: PathBuf) -> Result<Postrider> {
        let dir = tempfile::Builder::new().prefix("postrider-process-").tempdir()?;
        let data = self.data.unwrap_or_else(|| dir.path().join("data"));
        let port = free_port()?;
        let mut args: Vec<OsString> = ["serve", "--listen"].map(Into::into).to_vec();
        args.extend([
            format!("127.0.0.1:{port}").into(),
            "--data-dir".into(),
            data.into(),
        ]);
        args.extend(self.args);
        let launch = Launch {
            program,
            args,
            env: self.env,
            log: dir.path().join("output.log"),
            user: None,
            end: Signal::KILL,
        };
        let running = Some(launch.start()?);
        Ok(Postrider {
            running,
            launch,
            port,
            _dir: dir,
        })
    }
}

/// A `postrider serve` that keeps its port and data over restarts.
#[derive(Debug)]
pub struct Postrider {
    running: Option<Running>,
    launch: Launch,
    port: u16,
    _dir: TempDir,
}

impl Postrider {
    /// A process to be configured and started.
    pub fn builder() -> Builder {
        Builder::default().env("POSTRIDER_EGRESS__ALLOW", "127.0.0.0/8")
    }

    /// The base URL of its API, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The process id; `None` if it is down.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::pid)
    }

    /// Everything it has printed, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read(&self.launch.log)
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Waits until `GET /api/v1/health` answers 2xx.
    ///
    /// # Errors
    /// The process is down or ends, or is not ready within 60 s; the error shows its log.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let port = self.port;
        let running = self.running.as_mut().context("postrider is down")?;
        let waited = wait_for("postrider to be ready", READY_LIMIT, async || {
            if let Some(status) = running.exited()? {
                bail!("it ended with {status}");
            }
            Ok(match get_status(port, HEALTH).await {
                Ok(status) if (200..300).contains(&status) => Poll::Ready(()),
                Ok(status) => Poll::NotYet(format!("{HEALTH} answered {status}")),
                Err(error) => Poll::NotYet(format!("{error:#}")),
            })
        })
        .await;
        waited.with_context(|| format!("its log ends with:\n{}", running.log_tail()))
    }

    /// The admin key that an embedded first start prints: the last word of the line that says `admin key`.
    ///
    /// # Errors
    /// No such line is printed within 60 s.
    pub async fn admin_key(&self) -> Result<String> {
        wait_for("the admin key", READY_LIMIT, async || {
            let log = self.log();
            let line = log
                .lines()
                .find(|line| line.to_ascii_lowercase().contains("admin key"));
            let key = line.and_then(|line| line.split_whitespace().next_back());
            Ok(key.map_or_else(
                || Poll::NotYet("no line says `admin key`".into()),
                |key| Poll::Ready(key.into()),
            ))
        })
        .await
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// It is down already, or still runs after `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut running = self.running.take().context("postrider is down")?;
        running.stop(Signal::TERM, limit).await
    }

    /// Waits until it ends by itself, as at a failpoint.
    ///
    /// # Errors
    /// It is down already, or still runs after `limit`.
    pub async fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let status = self
            .running
            .as_mut()
            .context("postrider is down")?
            .wait_exit(limit)
            .await?;
        self.running = None;
        Ok(status)
    }

    /// Kills it without warning, and returns when it is dead.
    pub fn kill9(&mut self) {
        self.running = None;
    }

    /// Freezes the process: its connections stay open and nothing answers.
    ///
    /// # Errors
    /// It is down, or does not stop within 10 s.
    pub fn pause(&self) -> Result<()> {
        self.running.as_ref().context("postrider is down")?.pause()
    }

    /// Ends [`Postrider::pause`].
    ///
    /// # Errors
    /// It is down.
    pub fn resume(&self) -> Result<()> {
        self.running
            .as_ref()
            .context("postrider is down")?
            .signal(Signal::CONT)
    }

    /// Changes an environment variable for the next start; `None` removes it.
    pub fn set_env(&mut self, name: &str, value: Option<&str>) {
        self.launch.env.retain(|(known, _)| known != name);
        self.launch
            .env
            .extend(value.map(|value| (name.to_owned(), value.into())));
    }

    /// Changes the binary for the next start.
    pub fn set_program(&mut self, path: &Path) {
        path.clone_into(&mut self.launch.program);
    }

    /// Starts it with the same port and data, and waits until it is ready. Whatever still runs is killed first.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn start_again(&mut self) -> Result<()> {
        self.running = None;
        self.running = Some(self.launch.start()?);
        self.wait_ready().await
    }
}

impl Drop for Postrider {
    #[expect(clippy::print_stderr, reason = "a failed test shows what the process said")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let start = log.len().saturating_sub(16_384);
            let end = log.get(start..).unwrap_or(&log);
            eprintln!("--- postrider {:?} printed last:\n{end}---", self.launch.args);
        }
    }
}

/// The binary that tests run: `POSTRIDER_BIN`, else the one in this test's target directory.
///
/// # Errors
/// It has not been built.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("POSTRIDER_BIN").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    // A test binary lies in target/PROFILE/deps.
    let exe = std::env::current_exe()?;
    let beside = exe
        .parent()
        .and_then(Path::parent)
        .map(|profile| profile.join("postrider"));
    let built = beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| target_dir().join("debug/postrider"));
    let advice =
        "`cargo build -p postrider --features failpoints` builds it, `cargo xtask test` does so itself";
    ensure!(
        built.is_file(),
        "no postrider binary at {}; {advice}",
        built.display()
    );
    Ok(built)
}

/// The status of a GET over a connection of its own.
async fn get_status(port: u16, path: &str) -> Result<u16> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        // "HTTP/1.1 204"
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.context("no answer")?;
        std::str::from_utf8(&start[9..])?
            .parse::<u16>()
            .context("not an HTTP answer")
    };
    timeout(Duration::from_secs(2), exchange)
        .await
        .context("no answer within 2 s")?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A stand-in for the binary: prints what a first start prints and answers the health check.
    const STAND_IN: &str = r#"#!/usr/bin/env python3
import http.server, os, signal, sys
assert sys.argv[1:3] == ["serve", "--listen"] and sys.argv[4] == "--data-dir", sys.argv
print("admin key: key_123", os.environ.get("EXTRA", ""), flush=True)
assert not [name for name in os.environ if name.startswith("POSTRIDER_TEST")]
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204 if self.path == "/api/v1/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[3].split(":")[1])), Handler).serve_forever()
"#;

    #[tokio::test]
    async fn it_starts_tells_its_key_ends_and_starts_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("postrider");
        std::fs::write(&path, STAND_IN).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut process = Postrider::builder().spawn_program(path).unwrap();
        process.wait_ready().await.unwrap();
        assert_eq!(process.admin_key().await.unwrap(), "key_123");
        let first = process.pid();
        let status = process.terminate(Duration::from_secs(10)).await.unwrap();
        assert_eq!(status.code(), Some(7));
        process.wait_ready().await.unwrap_err();
        process.set_env("EXTRA", Some("second start"));
        process.start_again().await.unwrap();
        assert_ne!(process.pid(), first);
        assert!(process.log().contains("second start"));
        process.kill9();
        assert!(process.pid().is_none());
        get_status(process.port, HEALTH).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_process_that_ends_at_once_shows_its_log() {
        let mut process = Postrider::builder().spawn_program("/bin/echo".into()).unwrap();
        let error = process.wait_ready().await.unwrap_err();
        assert!(format!("{error:#}").contains("serve"), "{error:#}");
    }
}

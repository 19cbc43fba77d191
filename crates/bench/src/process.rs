//! The processes that the bench starts. None outlives it: they are killed on drop and, where `setpriv` (util-linux)
//! exists, by the kernel when the bench dies. They are started by the main thread, whose death is the bench's.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use postrider_testkit::services::find_binary;
use postrider_testkit::wait::{Poll, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// How long a process may take to end in good order.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The names of the processes that run now, for [`crate::usage::children`].
#[derive(Clone, Default)]
pub(crate) struct Names(Arc<Mutex<HashMap<u32, String>>>);

impl Names {
    pub(crate) fn get(&self) -> HashMap<u32, String> {
        self.0.lock().clone()
    }
}

/// What to start.
pub(crate) struct Start<'a> {
    /// What its costs are shown under.
    pub(crate) name: &'a str,
    pub(crate) program: &'a Path,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(String, String)>,
    /// Output goes here.
    pub(crate) log: PathBuf,
    /// User to run as, if not ours.
    pub(crate) user: Option<&'a str>,
}

pub(crate) struct Process {
    child: Child,
    pid: u32,
    name: String,
    names: Names,
    pub(crate) log: PathBuf,
}

impl Process {
    pub(crate) fn start(names: &Names, start: Start<'_>) -> Result<Self> {
        let mut command = match find_binary("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                // Not a signal that a shell's background jobs ignore. Postgres' children end when they miss their parent.
                command.arg("--pdeathsig=KILL");
                if let Some(user) = start.user {
                    command
                        .args([format!("--reuid={user}"), format!("--regid={user}")])
                        .arg("--clear-groups");
                }
                command.arg("--").arg(start.program);
                command
            }
            None => {
                ensure!(
                    start.user.is_none(),
                    "`setpriv` (util-linux) is needed to start Postgres from root"
                );
                Command::new(start.program)
            }
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("POSTRIDER_") {
                command.env_remove(name);
            }
        }
        let log =
            File::create(&start.log).with_context(|| format!("cannot write {}", start.log.display()))?;
        command.args(start.args).envs(start.env).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", start.program.display()))?;
        let pid = child.id().context("it ended at once")?;
        names.0.lock().insert(pid, start.name.to_owned());
        Ok(Self {
            child,
            pid,
            name: start.name.to_owned(),
            names: names.clone(),
            log: start.log,
        })
    }

    /// Waits until something accepts connections at this address.
    pub(crate) async fn listening(&mut self, address: SocketAddr, limit: Duration) -> Result<()> {
        let what = format!("{} to listen", self.name);
        wait_for(&what, limit, async || {
            self.check()?;
            Ok(match TcpStream::connect(address).await {
                Ok(_) => Poll::Ready(()),
                Err(error) => Poll::NotYet(error.to_string()),
            })
        })
        .await
    }

    /// An error if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(
            ended.is_none(),
            "{} ended ({ended:?}); its output:\n{}",
            self.name,
            self.tail()
        );
        Ok(())
    }

    /// Waits for it to end by itself; its output if it ended well.
    pub(crate) async fn output(mut self, limit: Duration) -> Result<String> {
        let status = tokio::time::timeout(limit, self.child.wait()).await;
        let status = status.with_context(|| format!("{} takes longer than {limit:?}", self.name))??;
        ensure!(
            status.success(),
            "{} failed ({status}):\n{}",
            self.name,
            self.tail()
        );
        std::fs::read_to_string(&self.log).context("cannot read its output")
    }

    /// SIGTERM, and SIGKILL if that does not help.
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop_with(Signal::TERM).await
    }

    /// A signal, and SIGKILL if that does not help.
    pub(crate) async fn stop_with(mut self, signal: Signal) -> Result<()> {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
            && self.child.try_wait()?.is_none()
        {
            kill_process(pid, signal)?;
        }
        if tokio::time::timeout(STOP_LIMIT, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }

    /// The end of its output.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(4_096)..]).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.names.0.lock().remove(&self.pid);
    }
}

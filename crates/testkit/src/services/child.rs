//! Child processes that cannot outlive the test.
//!
//! Dropping a [`Running`] stops its process. Should the test process itself be killed, the kernel does it: the
//! child is started through `setpriv --pdeathsig` (util-linux; absent elsewhere, where only the drop remains). The
//! kernel takes the death of the *thread* that forked for the death of the parent, so one thread that
//! never ends starts every child.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::host::{User, find_binary};

/// How long a process may take to stand still.
const PAUSE_LIMIT: Duration = Duration::from_secs(10);

/// How to start a server.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Added to this process's environment, of which the `POSTRIDER_*` variables are left out.
    pub(crate) env: Vec<(String, OsString)>,
    /// Standard output and error are appended here.
    pub(crate) log: PathBuf,
    /// Whom to run as; `None` for the current user.
    pub(crate) user: Option<User>,
    /// The signal that makes the server end at once without leaving anything behind: `QUIT` or `KILL`.
    pub(crate) end: Signal,
}

impl Launch {
    /// The command line, with the part that ties the process to its parent's life.
    fn command_line(&self) -> Result<Vec<OsString>> {
        let mut line: Vec<OsString> = Vec::new();
        if let Some(setpriv) = &*SETPRIV {
            line.push(setpriv.into());
            line.push(
                format!(
                    "--pdeathsig={}",
                    if self.end == Signal::QUIT { "QUIT" } else { "KILL" }
                )
                .into(),
            );
            if let Some(User { uid, gid }) = self.user {
                line.extend([format!("--reuid={uid}"), format!("--regid={gid}")].map(OsString::from));
                line.push("--clear-groups".into());
            }
            line.push("--".into());
        } else if self.user.is_some() {
            bail!(
                "`setpriv` (util-linux) is needed to start {} from root",
                self.program.display()
            );
        }
        line.push(self.program.clone().into());
        line.extend(self.args.iter().cloned());
        Ok(line)
    }

    fn command(&self, line: &[OsString]) -> Result<Command> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        let [program, args @ ..] = line else {
            bail!("empty command line")
        };
        let mut command = Command::new(program);
        command.args(args);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("POSTRIDER_") {
                command.env_remove(name);
            }
        }
        command.envs(self.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// Starts it as a child of this process.
    pub(crate) fn start(&self) -> Result<Running> {
        let command = self.command(&self.command_line()?)?;
        let child = spawn(command).with_context(|| format!("cannot start {}", self.program.display()))?;
        Ok(Running {
            child,
            end: self.end,
            log: self.log.clone(),
        })
    }

    /// Starts it under `script` (shell), detached from this process; the script gets `first`, then the command
    /// line, as its arguments.
    pub(crate) fn start_detached(&self, script: &str, first: &[OsString]) -> Result<()> {
        let mut line: Vec<OsString> = ["/bin/sh", "-c", script, "postrider-testkit"]
            .map(Into::into)
            .to_vec();
        line.extend(first.iter().cloned());
        line.extend(self.command_line()?);
        self.command(&line)?
            .process_group(0)
            .spawn()
            .context("cannot start the watchdog shell")?;
        Ok(())
    }
}

/// A server that runs as our child.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    end: Signal,
    log: PathBuf,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process has ended, and how.
    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.rustix_pid()?;
        kill_process(pid, signal).with_context(|| format!("cannot signal process {}", self.child.id()))
    }

    /// Stops it, and waits until it stands still: for a moment after the signal its threads may still answer.
    pub(crate) fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let who = WaitId::Pid(self.rustix_pid()?);
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let until = Instant::now() + PAUSE_LIMIT;
        while waitid(who.clone(), stopped)?.is_none() {
            ensure!(
                Instant::now() < until,
                "process {} does not stop",
                self.child.id()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn rustix_pid(&self) -> Result<Pid> {
        let pid = i32::try_from(self.child.id()).ok();
        pid.and_then(Pid::from_raw).context("not a pid")
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("process {} to end", self.pid());
        crate::wait::wait_for(&what, limit, async || {
            Ok(match self.exited()? {
                Some(status) => crate::wait::Poll::Ready(status),
                None => crate::wait::Poll::NotYet("still running".to_owned()),
            })
        })
        .await
    }

    /// Sends `signal` and waits for the end.
    pub(crate) async fn stop(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.exited()? {
            return Ok(status);
        }
        self.signal(signal)?;
        self.wait_exit(limit).await
    }

    /// The last lines it printed, for error messages.
    pub(crate) fn log_tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // A process frozen by SIGSTOP takes no other signal until it continues.
        let _ = self.signal(self.end).and_then(|()| self.signal(Signal::CONT));
        let deadline = Instant::now() + Duration::from_secs(3);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last 4 KiB of a log file, or why it cannot be read.
pub(crate) fn tail(log: &Path) -> String {
    match std::fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(4_096)..]).into_owned(),
        Err(error) => format!("({}: {error})", log.display()),
    }
}

static SETPRIV: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let path = find_binary("setpriv")?;
    let works = Command::new(&path)
        .args(["--pdeathsig=KILL", "--", "true"])
        .stderr(Stdio::null())
        .status();
    works.is_ok_and(|status| status.success()).then_some(path)
});

type Job = (Command, Sender<std::io::Result<Child>>);

/// Starts a child from the thread that lives as long as the process.
pub(crate) fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<SyncSender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = sync_channel::<Job>(16);
        std::thread::spawn(move || {
            while let Ok((mut command, reply)) = queue.recv() {
                let _ = reply.send(command.spawn());
            }
        });
        jobs
    });
    let (reply, answer) = channel();
    spawner
        .send((command, reply))
        .ok()
        .context("the spawner thread is gone")?;
    Ok(answer.recv().context("the spawner thread is gone")??)
}

//! Private RabbitMQ nodes, as the current user, with an Erlang port mapper of their own.
//!
//! Debian's `rabbitmq-server` wrapper changes to the `rabbitmq` user; the script below it, in
//! `/usr/lib/rabbitmq/bin`, does not and is used here. The server's script is told that a supervisor runs
//! it, so that it becomes the Erlang machine instead of waiting for it: signals and death reach the right process.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::timeout;

use super::server::{Kind, Server};
use super::shared::{Prepared, data_dir, log_in};
use super::{Launch, free_port, host, unique_name};

const LIMIT: Duration = Duration::from_secs(90);

const EPMD_PORT: &str = "ERL_EPMD_PORT";

/// $1 epmd, $2 the server script. epmd is a child of what becomes the Erlang machine and dies with it where
/// `setpriv` exists; nodes never start another (`-start_epmd false`).
const START: &str = r#"
if command -v setpriv >/dev/null; then setpriv --pdeathsig=KILL -- "$1" & else "$1" & fi
tries=0
until "$1" -names >/dev/null 2>&1; do
    tries=$((tries + 1)); [ $tries -lt 250 ] || { echo "epmd does not answer"; exit 1; }
    sleep 0.02
done
exec "$2"
"#;

/// A RabbitMQ of the test's own: it keeps port and data over restarts. User and password are `guest`.
pub type RabbitServer = Server<Rabbit>;

/// RabbitMQ: `amqp://guest:guest@127.0.0.1:PORT/%2f`.
#[derive(Debug)]
pub enum Rabbit {}

impl Kind for Rabbit {
    const NAME: &'static str = "rabbitmq";
    const LIMIT: Duration = LIMIT;
    const STOP: Signal = Signal::TERM;

    fn url(port: u16) -> String {
        format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
    }

    /// The former port mapper may be about to die, and must not answer for the new one.
    fn fresh_environment() -> Result<Vec<(String, OsString)>> {
        Ok(vec![(EPMD_PORT.to_owned(), free_port()?.to_string().into())])
    }
}

impl RabbitServer {
    /// Starts a node with default settings; takes 4 s or so.
    ///
    /// # Errors
    /// RabbitMQ is not installed or does not answer within 90 s.
    pub async fn start() -> Result<Self> {
        Self::start_with("").await
    }

    /// Starts a node with further lines of `rabbitmq.conf`.
    ///
    /// # Errors
    /// RabbitMQ is not installed, rejects the settings, or does not answer within 90 s.
    pub async fn start_with(settings: &str) -> Result<Self> {
        let dir = data_dir("rabbitmq")?;
        let port = free_port()?;
        let launch = launch(dir.path(), port, settings)?;
        Self::launched(launch, port, dir).await
    }

    /// Runs `rabbitmqctl` and returns what it prints, without headings: `&["list_queues", "name", "messages"]`,
    /// `&["close_all_connections", "reason"]`, `&["set_vm_memory_high_watermark", "0"]`, `&["delete_queue", "name"]`.
    ///
    /// # Errors
    /// The server is down, or the command fails or takes over 90 s.
    pub async fn ctl(&self, args: &[&str]) -> Result<String> {
        self.running()?;
        let mut command = Command::new(host::need_binary("rabbitmqctl")?);
        command
            .arg("--quiet")
            .args(args)
            .envs(self.launch().env.iter().cloned())
            .kill_on_drop(true);
        let output = timeout(LIMIT, command.output())
            .await
            .context("rabbitmqctl takes too long")??;
        ensure!(
            output.status.success(),
            "rabbitmqctl {args:?}: {}{}",
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

pub(crate) async fn prepare(dir: &Path) -> Result<Prepared> {
    let port = free_port()?;
    std::future::ready(Ok(Prepared {
        launch: launch(dir, port, "")?,
        url: Rabbit::url(port),
    }))
    .await
}

fn launch(dir: &Path, port: u16, settings: &str) -> Result<Launch> {
    let server = host::need_binary("rabbitmq-server")?;
    let epmd = host::need_binary("epmd")?;
    let config = dir.join("rabbitmq.conf");
    // A small disk must not stop the tests; the alarm can still be raised through `ctl`.
    std::fs::write(&config, format!("disk_free_limit.absolute = 1MB\n{settings}\n"))?;
    std::fs::write(dir.join("enabled_plugins"), "[].\n")?;
    let path = |name: &str| OsString::from(dir.join(name));
    let env = [
        ("HOME", dir.into()),
        (EPMD_PORT, free_port()?.to_string().into()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        // Idle schedulers give the processor back at once: tests share few cores.
        (
            "ERL_FLAGS",
            "-start_epmd false +sbwt none +sbwtdcpu none +sbwtdio none".into(),
        ),
        ("RUNNING_UNDER_SYSTEMD", "true".into()),
        (
            "RABBITMQ_NODENAME",
            format!("{}@localhost", unique_name("postrider")).into(),
        ),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_NODE_PORT", port.to_string().into()),
        ("RABBITMQ_DIST_PORT", free_port()?.to_string().into()),
        ("RABBITMQ_MNESIA_BASE", path("mnesia")),
        ("RABBITMQ_LOG_BASE", path("log")),
        ("RABBITMQ_GENERATED_CONFIG_DIR", path("config")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
        ("RABBITMQ_CONFIG_FILE", config.into()),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", path("advanced.config")),
        ("RABBITMQ_CONF_ENV_FILE", path("rabbitmq-env.conf")),
        ("RABBITMQ_PID_FILE", path("rabbitmq.pid")),
    ];
    let env = env
        .map(|(name, value): (&str, OsString)| (name.to_owned(), value))
        .to_vec();
    Ok(Launch {
        program: "/bin/sh".into(),
        args: vec![
            "-c".into(),
            START.into(),
            "rabbitmq".into(),
            epmd.into(),
            server.into(),
        ],
        env,
        log: log_in(dir),
        user: None,
        end: Signal::KILL,
    })
}

//! What every scenario stands on: the services, the receiver, and the way to start processes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use http::Method;
use postrider_testkit::services::free_port;
use tempfile::TempDir;

use crate::figures::Received;
use crate::http_client::Http;
use crate::process::{Names, Process, Start};
use crate::services::Services;
use crate::usage;

/// How long one of our processes may take to listen.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(60);
/// A machine is at rest when all children together use less than this part of one core.
const REST_CORES: f64 = 0.05;
/// How long to wait for that.
const REST_LIMIT: Duration = Duration::from_secs(20);
const REST_LIMIT_QUICK: Duration = Duration::from_millis(1_500);
const REST_LOOK: Duration = Duration::from_millis(500);

pub(crate) struct Lab {
    pub(crate) services: Services,
    pub(crate) receiver: Receiver,
    pub(crate) names: Names,
    /// The binary that is measured, if it is there.
    pub(crate) postrider: Option<PathBuf>,
    /// Rounds of each comparison.
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
    /// Whether the machine came to rest the last time.
    pub(crate) rested: std::cell::Cell<bool>,
    own: PathBuf,
    dir: TempDir,
    counter: std::cell::Cell<u32>,
}

impl Lab {
    pub(crate) async fn open(postrider: Option<PathBuf>, rounds: usize, quick: bool) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("postrider-bench-").tempdir()?;
        let names = Names::default();
        let own = std::env::current_exe()?;
        let services = Services::start(&names, dir.path()).await?;
        let receiver = Receiver::start(&names, &own, dir.path(), 0).await?;
        let counter = std::cell::Cell::new(0);
        Ok(Self {
            services,
            receiver,
            names,
            postrider,
            rounds,
            quick,
            rested: std::cell::Cell::new(true),
            own,
            dir,
            counter,
        })
    }

    /// Starts this program with another sub-command.
    pub(crate) fn start_own(&self, name: &str, args: &[String]) -> Result<Process> {
        start_own(&self.names, &self.own, &self.log(name), name, args)
    }

    /// Starts the binary that is measured.
    pub(crate) fn start_postrider(
        &self,
        name: &str,
        args: &[String],
        env: Vec<(String, String)>,
    ) -> Result<Process> {
        let program = self
            .postrider
            .as_deref()
            .context("there is no `postrider` binary")?;
        let args = args.iter().map(Into::into).collect();
        Process::start(
            &self.names,
            Start {
                name,
                program,
                args,
                env,
                log: self.log(name),
                user: None,
            },
        )
    }

    /// A path for a file of this run.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.counter.set(self.counter.get() + 1);
        self.dir.path().join(format!("{}-{name}", self.counter.get()))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.file(&format!("{name}.log"))
    }

    /// Ends everything in good order.
    pub(crate) async fn close(self) -> Result<()> {
        self.receiver.process.stop().await?;
        self.services.stop().await
    }

    /// Waits until the children do next to nothing (checkpoints, vacuum, compaction of what was before), for 20 s at
    /// most; with `--quick` 1.5 s. The next measurement tells whether they did.
    pub(crate) async fn rest(&self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + if self.quick { REST_LIMIT_QUICK } else { REST_LIMIT };
        loop {
            let before: f64 = usage::children(&self.names.get())?
                .values()
                .map(|usage| usage.cpu_s)
                .sum();
            tokio::time::sleep(REST_LOOK).await;
            let after: f64 = usage::children(&self.names.get())?
                .values()
                .map(|usage| usage.cpu_s)
                .sum();
            let rested = after - before < REST_CORES * REST_LOOK.as_secs_f64();
            if rested || tokio::time::Instant::now() > deadline {
                self.rested.set(rested);
                return Ok(());
            }
        }
    }
}

/// The receiver's process and how to ask it.
pub(crate) struct Receiver {
    process: Process,
    pub(crate) address: SocketAddr,
    http: Http,
    /// Where its TLS hosts listen.
    pub(crate) tls_port: u16,
    /// The certificate authority of its TLS hosts.
    pub(crate) tls_ca: Option<PathBuf>,
}

impl Receiver {
    async fn start(names: &Names, own: &Path, dir: &Path, tls_hosts: u16) -> Result<Self> {
        let address = loopback()?;
        let tls_port = free_port()?;
        let mut args = vec!["receive".into(), format!("--listen={address}")];
        let tls_ca = (tls_hosts > 0).then(|| dir.join("tls-ca.pem"));
        if let Some(path) = &tls_ca {
            args.extend([
                format!("--tls-hosts={tls_hosts}"),
                format!("--tls-port={tls_port}"),
                format!("--tls-ca={}", path.display()),
            ]);
        }
        let mut process = start_own(
            names,
            own,
            &dir.join(format!("receiver-{tls_hosts}.log")),
            "receiver",
            &args,
        )?;
        process.listening(address, START_LIMIT).await?;
        Ok(Self {
            process,
            address,
            http: Http::new(format!("http://{address}"), None),
            tls_port,
            tls_ca,
        })
    }

    /// The URL of the endpoints of a behaviour and a group, without the endpoint's number.
    pub(crate) fn url(&self, behaviour: &str, group: usize) -> String {
        format!("http://{}/{behaviour}/{group}", self.address)
    }

    /// Forgets what it counted; `fan_out` endpoints to each message from now on.
    pub(crate) async fn reset(&self, fan_out: u64) -> Result<()> {
        self.http
            .ask(Method::POST, &format!("/_/reset/{fan_out}"), None)
            .await
            .map(drop)
    }

    /// Lets the `storm` endpoints fail, or not.
    pub(crate) async fn storm(&self, on: bool) -> Result<()> {
        let path = if on { "/_/storm/on" } else { "/_/storm/off" };
        self.http.ask(Method::POST, path, None).await.map(drop)
    }

    /// Counts by group, without latencies.
    pub(crate) async fn counts(&self) -> Result<Vec<Received>> {
        Ok(serde_json::from_slice(
            &self.http.ask(Method::GET, "/_/counts", None).await?,
        )?)
    }

    /// Counts and latencies by group.
    pub(crate) async fn stats(&self) -> Result<Vec<Received>> {
        Ok(serde_json::from_slice(
            &self.http.ask(Method::GET, "/_/stats", None).await?,
        )?)
    }

    /// Replaces it by one with so many TLS hosts.
    pub(crate) async fn restart(lab: &mut Lab, tls_hosts: u16) -> Result<()> {
        let new = Self::start(&lab.names, &lab.own, lab.dir.path(), tls_hosts).await?;
        std::mem::replace(&mut lab.receiver, new).process.stop().await
    }
}

/// A free address on this machine.
pub(crate) fn loopback() -> Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)))
}

fn start_own(names: &Names, own: &Path, log: &Path, name: &str, args: &[String]) -> Result<Process> {
    let args = args.iter().map(Into::into).collect();
    Process::start(
        names,
        Start {
            name,
            program: own,
            args,
            env: Vec::new(),
            log: log.to_owned(),
            user: None,
        },
    )
}

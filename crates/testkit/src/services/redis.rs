//! Private Redis servers: one node, or a cluster without replicas. Nothing is written to disk.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use super::shared::{Prepared, data_dir, log_in};
use super::{Launch, Running, free_port, host, probe};
use crate::wait::{Poll, wait_for};

const LIMIT: Duration = Duration::from_secs(20);

/// A Redis of the test's own, on a port that it keeps over restarts.
#[derive(Debug)]
pub struct RedisServer {
    running: Option<Running>,
    launch: Launch,
    port: u16,
    _dir: TempDir,
}

impl RedisServer {
    /// Starts a Redis without persistence.
    ///
    /// # Errors
    /// `redis-server` is not installed or does not answer within 20 s.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// Starts a Redis with further command-line settings, as in `&["--maxmemory", "10mb"]`.
    ///
    /// # Errors
    /// `redis-server` is not installed, rejects the settings, or does not answer within 20 s.
    pub async fn start_with(settings: &[&str]) -> Result<Self> {
        let dir = data_dir("redis")?;
        let port = free_port()?;
        let launch = launch(dir.path(), port, settings)?;
        let mut server = Self {
            running: None,
            launch,
            port,
            _dir: dir,
        };
        server.start_again().await?;
        Ok(server)
    }

    /// `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        url(self.port)
    }

    /// The port, the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it in good order; its data is gone. Does nothing if it is down.
    ///
    /// # Errors
    /// It still runs after 20 s.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            running.stop(Signal::TERM, LIMIT).await?;
        }
        Ok(())
    }

    /// Kills it without warning.
    pub fn kill9(&mut self) {
        self.running = None;
    }

    /// Starts it, empty, on the same port. Does nothing if it is up.
    ///
    /// # Errors
    /// It does not answer within 20 s.
    pub async fn start_again(&mut self) -> Result<()> {
        if self.running.is_none() {
            let mut running = self.launch.start()?;
            probe::ready(&self.url(), &mut running, LIMIT).await?;
            self.running = Some(running);
        }
        Ok(())
    }

    /// Freezes the process: connections stay open and nothing answers.
    ///
    /// # Errors
    /// It is not running.
    pub fn pause(&self) -> Result<()> {
        self.running
            .as_ref()
            .context("redis is down")?
            .signal(Signal::STOP)
    }

    /// Ends [`RedisServer::pause`].
    ///
    /// # Errors
    /// It is not running.
    pub fn resume(&self) -> Result<()> {
        self.running
            .as_ref()
            .context("redis is down")?
            .signal(Signal::CONT)
    }

    /// Deletes everything in it.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn flush(&self) -> Result<()> {
        let answer = self.command(&["FLUSHALL"]).await?;
        ensure!(answer.starts_with("+OK"), "FLUSHALL: {answer}");
        Ok(())
    }

    /// Sends one command and returns the raw start of the reply (RESP2, at most 64 KiB), for looking at the
    /// server's state.
    ///
    /// # Errors
    /// It does not answer within 20 s.
    pub async fn command(&self, words: &[&str]) -> Result<String> {
        command(self.port, words).await
    }
}

/// A Redis cluster of the test's own: nodes without replicas, all slots served.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts `count` nodes (Redis wants at least 3) and joins them.
    ///
    /// # Errors
    /// Redis is not installed, or the cluster does not serve all slots within a minute.
    pub async fn start(count: usize) -> Result<Self> {
        let mut nodes = Vec::new();
        for _ in 0..count {
            let bus = free_port()?.to_string();
            let settings = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-node-timeout",
                "5000",
            ];
            nodes.push(RedisServer::start_with(&settings).await?);
        }
        let mut join = Command::new(host::need_binary("redis-cli")?);
        join.args(["--cluster", "create"]).kill_on_drop(true);
        join.args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
        join.args(["--cluster-replicas", "0", "--cluster-yes"]);
        let output = timeout(Duration::from_secs(40), join.output())
            .await
            .context("joining the nodes")??;
        ensure!(
            output.status.success(),
            "joining the nodes: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        for node in &nodes {
            wait_for("the cluster to serve all slots", LIMIT, async || {
                let info = node.command(&["CLUSTER", "INFO"]).await?;
                Ok(if info.contains("cluster_state:ok") {
                    Poll::Ready(())
                } else {
                    Poll::NotYet(info)
                })
            })
            .await?;
        }
        Ok(Self { nodes })
    }

    /// The nodes' URLs.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// The nodes, to break one of them.
    pub fn nodes_mut(&mut self) -> &mut [RedisServer] {
        &mut self.nodes
    }
}

pub(crate) async fn prepare(dir: &Path) -> Result<Prepared> {
    let port = free_port()?;
    std::future::ready(Ok(Prepared {
        launch: launch(dir, port, &[])?,
        url: url(port),
    }))
    .await
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

fn launch(dir: &Path, port: u16, settings: &[&str]) -> Result<Launch> {
    let program =
        host::need_binary("redis-server").or_else(|e| host::need_binary("valkey-server").map_err(|_| e))?;
    let port = port.to_string();
    let mut args = vec![
        "--port",
        &port,
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ];
    args.extend([
        "--daemonize",
        "no",
        "--dir",
        dir.to_str().context("a path that is not UTF-8")?,
    ]);
    args.extend(settings);
    Ok(Launch {
        program,
        args: args.into_iter().map(Into::into).collect(),
        env: Vec::new(),
        log: log_in(dir),
        user: None,
        end: Signal::KILL,
    })
}

async fn command(port: u16, words: &[&str]) -> Result<String> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut reply = vec![0; 65_536];
        let read = stream.read(&mut reply).await?;
        ensure!(read > 0, "redis closed the connection");
        Ok(String::from_utf8_lossy(&reply[..read]).into_owned())
    };
    timeout(LIMIT, exchange)
        .await
        .with_context(|| format!("no answer to {words:?}"))?
}

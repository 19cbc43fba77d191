//! Private Redis servers: one node, or a cluster without replicas. Nothing is written to disk.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use super::server::{Kind, Server};
use super::shared::{Prepared, data_dir, log_in};
use super::{Launch, free_port, host};
use crate::wait::{Poll, wait_for};

const LIMIT: Duration = Duration::from_secs(20);

/// A Redis of the test's own. It comes back empty.
pub type RedisServer = Server<Redis>;

/// Redis: `redis://127.0.0.1:PORT`.
#[derive(Debug)]
pub enum Redis {}

impl Kind for Redis {
    const NAME: &'static str = "redis";
    const LIMIT: Duration = LIMIT;
    const STOP: Signal = Signal::TERM;

    fn url(port: u16) -> String {
        format!("redis://127.0.0.1:{port}")
    }
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
        Self::launched(launch, port, dir).await
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
        command(self.port(), words).await
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
        join.args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())));
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
        url: Redis::url(port),
    }))
    .await
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

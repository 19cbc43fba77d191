//! RabbitMQ, Redis and Postgres for one test run.
//!
//! Each is looked for in this order: the URL in the environment, installed binaries (installed now if we are root
//! on Debian), `docker compose`. What was started ends with [`Servers::stop`], or with the process.

use anyhow::{Result, bail};
use postrider_testkit::services::{
    AMQP_URL, POSTGRES_URL, PostgresServer, REDIS_URL, RabbitServer, RedisServer, find_binary, free_port,
    reachable,
};
use postrider_testkit::wait::{Poll, wait_for};
use tokio::process::Command;

use crate::install;
use crate::shell::{command, must, works};

const COMPOSE: &str = "deploy/test-services.yml";

/// The servers, and where they are.
#[derive(Default)]
pub(crate) struct Servers {
    rabbitmq: Option<RabbitServer>,
    redis: Option<RedisServer>,
    postgres: Option<PostgresServer>,
    composed: bool,
    /// Variables for the tests' environment.
    pub(crate) env: Vec<(&'static str, String)>,
}

struct Kind {
    variable: &'static str,
    /// Alternatives; one is enough.
    binaries: &'static [&'static str],
    package: &'static str,
    compose: (&'static str, &'static str, &'static str),
}

const RABBITMQ: Kind = Kind {
    variable: AMQP_URL,
    binaries: &["rabbitmq-server"],
    package: "rabbitmq-server",
    compose: ("rabbitmq", "AMQP_PORT", "amqp://guest:guest@127.0.0.1:{port}/%2f"),
};
const REDIS: Kind = Kind {
    variable: REDIS_URL,
    binaries: &["redis-server", "valkey-server"],
    package: "redis-server",
    compose: ("redis", "REDIS_PORT", "redis://127.0.0.1:{port}"),
};
const POSTGRES: Kind = Kind {
    variable: POSTGRES_URL,
    binaries: &["initdb"],
    package: "postgresql",
    compose: (
        "postgres",
        "POSTGRES_PORT",
        "postgres://postgres@127.0.0.1:{port}/postgres",
    ),
};

impl Kind {
    fn installed(&self) -> bool {
        self.binaries.iter().any(|name| find_binary(name).is_some())
    }

    /// The environment's server, if it answers.
    async fn given(&self) -> Option<String> {
        let url = std::env::var(self.variable).ok().filter(|url| !url.is_empty())?;
        if reachable(&url).await {
            return Some(url);
        }
        eprintln!(
            "xtask: {} does not answer; looking for another server",
            self.variable
        );
        None
    }
}

impl Servers {
    /// Brings up whatever the environment does not name.
    pub(crate) async fn start() -> Result<Self> {
        let mut servers = Self::default();
        let mut needed = Vec::new();
        for kind in [RABBITMQ, REDIS, POSTGRES] {
            match kind.given().await {
                Some(url) => servers.env.push((kind.variable, url)),
                None => needed.push(kind),
            }
        }
        let missing: Vec<_> = needed
            .iter()
            .filter(|kind| !kind.installed())
            .map(|kind| kind.package)
            .collect();
        if !missing.is_empty() && install::possible() {
            install::packages(&missing).await?;
        }
        let (installed, absent): (Vec<_>, Vec<_>) = needed.into_iter().partition(Kind::installed);
        if let Err(error) = servers.bring_up(&installed, &absent).await {
            servers.stop().await;
            return Err(error);
        }
        Ok(servers)
    }

    async fn bring_up(&mut self, installed: &[Kind], absent: &[Kind]) -> Result<()> {
        if !absent.is_empty() {
            self.compose(absent).await?;
        }
        for kind in installed {
            let url = match kind.variable {
                AMQP_URL => self.rabbitmq.insert(RabbitServer::start().await?).url(),
                REDIS_URL => self.redis.insert(RedisServer::start().await?).url(),
                _ => self.postgres.insert(PostgresServer::start().await?).url(),
            };
            eprintln!("xtask: started {}", kind.package);
            self.env.push((kind.variable, url));
        }
        Ok(())
    }

    async fn compose(&mut self, kinds: &[Kind]) -> Result<()> {
        let names: Vec<_> = kinds.iter().map(|kind| kind.package).collect();
        let mut version = command("docker");
        version.args(["compose", "version"]);
        let mut daemon = command("docker");
        daemon.arg("info");
        if !works(version).await || !works(daemon).await {
            bail!(
                "the tests need servers: install {} (Debian's names; `apt-get install {}`), or Docker with its \
                 compose plugin, or name servers in {AMQP_URL}, {REDIS_URL} and {POSTGRES_URL}",
                names.join(", "),
                names.join(" ")
            );
        }
        eprintln!("xtask: tests that break a server of their own need it installed and will fail without it");
        let mut up = docker_compose();
        up.args(["up", "-d"]);
        let mut urls = Vec::new();
        for kind in kinds {
            let (service, variable, pattern) = kind.compose;
            let port = free_port()?.to_string();
            up.arg(service).env(format!("POSTRIDER_TEST_{variable}"), &port);
            urls.push((kind.variable, pattern.replace("{port}", &port)));
        }
        self.composed = true;
        must(up).await?;
        for (variable, url) in urls {
            wait_for(variable, std::time::Duration::from_secs(120), async || {
                Ok(if reachable(&url).await {
                    Poll::Ready(())
                } else {
                    Poll::NotYet("no answer".to_owned())
                })
            })
            .await?;
            self.env.push((variable, url));
        }
        Ok(())
    }

    /// Stops what was started.
    pub(crate) async fn stop(self) {
        let Self {
            rabbitmq,
            redis,
            postgres,
            composed,
            ..
        } = self;
        drop((rabbitmq, redis, postgres));
        if composed {
            let mut down = docker_compose();
            down.args(["down", "--volumes"]);
            if let Err(error) = must(down).await {
                eprintln!("xtask: {error:#}");
            }
        }
    }
}

fn docker_compose() -> Command {
    let mut compose = command("docker");
    compose.args(["compose", "-p", "postrider-test", "-f", COMPOSE]);
    for variable in ["AMQP", "REDIS", "POSTGRES"] {
        // Compose wants every variable of the file, also for services that it does not start.
        compose.env(format!("POSTRIDER_TEST_{variable}_PORT"), "0");
    }
    compose
}

//! `postrider status`: how everything stands, for whoever is on call.
//!
//! It works straight on the store and the broker of the configuration, so it tells the truth also when no gateway
//! answers. Of an embedded Postrider it reads the file that the running process uses; what only that process knows
//! (its queues, its breakers) comes over the API with `--url`. Beside that it asks the process at the configured
//! address, and its metrics if they are served, for what that process alone can tell.

mod process;
mod text;

use std::time::Duration;

use anyhow::{Context as _, bail};
use postrider_broker::Health;
use postrider_config::Config;
use postrider_gateway::Status;
use postrider_store::SharedStore;
use postrider_telemetry::Metrics;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use crate::out::say;
use crate::parts::{self, Parts};
use process::{Probe, Process};

/// How long a first connection to the broker may take.
const BROKER_LIMIT: Duration = Duration::from_secs(5);
/// How long the API may take to answer.
const API_LIMIT: Duration = Duration::from_secs(15);

/// Whom to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Ask the gateway at this URL over the API, with auth.admin_key as the key, instead of the services themselves.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// What is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) status: Status,
    pub(crate) roles: RoleCounts,
    pub(crate) journal: Journal,
    /// The process at the configured address; absent when nothing answers there.
    pub(crate) process: Option<Process>,
}

/// Processes by role, as far as they can be seen: workers and ledgers by what consumes the queues, one gateway when it
/// answers.
#[derive(Debug, Serialize)]
pub(crate) struct RoleCounts {
    pub(crate) gateways: Option<u32>,
    pub(crate) workers: Option<u32>,
    pub(crate) ledgers: Option<u32>,
}

/// What is not recorded yet.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Journal {
    /// Frames in the journal; absent when the broker was not asked or is away.
    pub(crate) frames: Option<u64>,
    /// Age of the oldest record of the last batch, as the process at the configured address tells it, if it is a
    /// ledger.
    pub(crate) lag_seconds: Option<f64>,
}

/// Prints the status once.
pub(crate) async fn run(config: Config, options: Options, json: bool) -> anyhow::Result<()> {
    let source = Source::new(&config, options).await?;
    let report = source.report().await?;
    if json {
        say(serde_json::to_string_pretty(&report)?)?;
    } else {
        say(text::render(&report).trim_end())?;
    }
    source.close().await;
    Ok(())
}

/// Where a report comes from; kept open for the next one.
pub(crate) struct Source {
    from: From,
    probe: Probe,
    embedded: bool,
}

enum From {
    Api {
        client: reqwest::Client,
        url: String,
        key: SecretString,
    },
    Services {
        parts: Box<Parts>,
        shards: u16,
    },
    /// The file of an embedded Postrider.
    File(SharedStore),
}

impl Source {
    /// Connects; a broker that is away is waited for a little.
    pub(crate) async fn new(config: &Config, options: Options) -> anyhow::Result<Self> {
        let from = match options.url {
            Some(url) => From::api(config, &url)?,
            None if config.is_scaled_out() => From::services(config).await?,
            None => From::File(parts::existing_store(config)?),
        };
        Ok(Self {
            from,
            probe: Probe::new(config)?,
            embedded: !config.is_scaled_out(),
        })
    }

    /// Looks now.
    pub(crate) async fn report(&self) -> anyhow::Result<Report> {
        let (status, process) = tokio::join!(self.status(), self.probe.ask());
        let status = status?;
        let consumers = |prefix: &str| {
            let queues = status.queues.iter();
            queues
                .filter(|queue| queue.name.starts_with(prefix))
                .map(|queue| queue.consumers)
                .max()
        };
        let here = process.as_ref().filter(|_| self.embedded).map(|_| 1);
        let by_api = matches!(self.from, From::Api { .. });
        let gateway = by_api || process.as_ref().is_some_and(Process::is_gateway);
        let roles = RoleCounts {
            gateways: gateway.then_some(1),
            workers: consumers("deliver.").or(here),
            ledgers: consumers("journal").or(here),
        };
        let journal = Journal {
            frames: status
                .queues
                .iter()
                .find(|queue| queue.name == "journal")
                .map(|queue| queue.frames),
            lag_seconds: process.as_ref().and_then(|process| process.journal_lag_seconds),
        };
        Ok(Report {
            status,
            roles,
            journal,
            process,
        })
    }

    /// The report as text.
    pub(crate) fn text(report: &Report) -> String {
        text::render(report)
    }

    async fn status(&self) -> anyhow::Result<Status> {
        match &self.from {
            From::Api { client, url, key } => ask_api(client, url, key).await,
            From::Services { parts, shards } => {
                let (broker, limits) = (Some(parts.broker.as_ref()), Some(&parts.limits));
                Ok(Status::look(&parts.store, broker, limits, *shards).await)
            }
            From::File(store) => Ok(Status::look(store, None, None, 0).await),
        }
    }

    /// Closes the connections.
    pub(crate) async fn close(self) {
        match self.from {
            From::Api { .. } => {}
            From::Services { parts, .. } => {
                parts.broker.close().await;
                parts.store.close().await;
            }
            From::File(store) => store.close().await,
        }
    }
}

impl From {
    fn api(config: &Config, url: &str) -> anyhow::Result<Self> {
        let Some(key) = config.auth.admin_key.clone() else {
            bail!("--url needs an admin key: set POSTRIDER_AUTH__ADMIN_KEY");
        };
        let client = reqwest::Client::builder()
            .timeout(API_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let url = format!("{}/api/v1/status", url.trim_end_matches('/'));
        Ok(Self::Api { client, url, key })
    }

    async fn services(config: &Config) -> anyhow::Result<Self> {
        let store = parts::store(config)?;
        let parts = Box::new(parts::parts(config, store, Metrics::new()).await?);
        // Without it the report says that the broker is down.
        let _ = wait_for_broker(&parts, BROKER_LIMIT).await;
        Ok(Self::Services {
            parts,
            shards: config.broker.shards,
        })
    }
}

/// Waits until the broker takes frames.
pub(crate) async fn wait_for_broker(parts: &Parts, limit: Duration) -> anyhow::Result<()> {
    let mut health = parts.broker.health();
    let up = tokio::time::timeout(limit, health.wait_for(|health| *health == Health::Up)).await;
    match up {
        Ok(Ok(_)) => Ok(()),
        _ => bail!("the broker takes no frames within {} s", limit.as_secs()),
    }
}

async fn ask_api(client: &reqwest::Client, url: &str, key: &SecretString) -> anyhow::Result<Status> {
    let request = client.get(url).bearer_auth(key.expose_secret());
    let response = request
        .send()
        .await
        .with_context(|| format!("no answer from {url}"))?;
    let status = response.status();
    if !status.is_success() {
        bail!("{url} answered {status}");
    }
    response
        .json()
        .await
        .with_context(|| format!("{url} answered something else than a status"))
}

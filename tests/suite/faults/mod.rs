//! Faults under load: what breaks heals by itself, and no acknowledged message is lost.
//!
//! Each test sets a [`Scene`] (an application with endpoints, and who receives for them), lets a [`load::Load`] of
//! several producers send into it, breaks something, and lets the oracle and the recorded counters judge. Whatever a
//! test breaks is its own; nextest runs these tests one at a time.

mod broker;
mod crash;
mod dashboards;
mod drain;
mod load;
mod poison;
mod redis;
mod store;
mod trial;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postrider_testkit::oracle::{Oracle, Verdict};
use postrider_testkit::process::Postrider;
use postrider_testkit::receiver::{Receiver, Reply, Script};
use postrider_testkit::services::{PostgresServer, RabbitServer, RedisServer, free_port};
use postrider_testkit::wait::{Poll, wait_for_every};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::load::Load;
use crate::api::Api;
use crate::stack::{Shape, Shared, Stack};

/// How long it may take until all is delivered and recorded: a lease that must expire first, and a busy machine.
const SETTLE: Duration = Duration::from_secs(150);
/// The pause between two looks at something that is asked over HTTP.
const LOOK: Duration = Duration::from_millis(250);
/// Shortens the leases of the scheduler to the least that the settings allow.
pub(crate) const SHORT_LEASE: (&str, &str) = ("POSTRIDER_SCHEDULER__LEASE", "45s");

/// An application with three endpoints: one answers, one fails now and then, one fails at first.
pub(crate) struct Scene {
    pub(crate) receiver: Receiver,
    oracle: Arc<Oracle>,
    app: String,
    /// Ids and URLs.
    endpoints: Vec<(String, String)>,
}

impl Scene {
    pub(crate) async fn new(api: &Api) -> Result<Self> {
        let receiver = Receiver::start().await?;
        receiver.on("/flaky", Script::always(Reply::Status(200)).failing(0.2, 500, 7));
        // Fewer failures in a row than open a breaker.
        receiver.on(
            "/late",
            Script::sequence([Reply::Status(503), Reply::Close, Reply::Status(500)]),
        );
        let paths = ["/fine", "/flaky", "/late"];
        Self::with(
            api,
            receiver,
            &paths,
            &json!({"retrySchedule": [1, 1, 1, 1, 1, 1, 1, 1]}),
        )
        .await
    }

    /// An application with an endpoint for each path, each with these settings.
    async fn with(api: &Api, receiver: Receiver, paths: &[&str], settings: &Value) -> Result<Self> {
        let app = api.app().await?;
        let mut endpoints = vec![];
        for path in paths {
            let url = receiver.url(path);
            let mut body = settings.clone();
            body["url"] = json!(url);
            endpoints.push((api.endpoint_with(&app, body).await?, url));
        }
        let oracle = Arc::new(Oracle::new());
        Ok(Self {
            receiver,
            oracle,
            app,
            endpoints,
        })
    }

    fn urls(&self) -> Vec<String> {
        self.endpoints.iter().map(|(_, url)| url.clone()).collect()
    }

    /// Starts producers that send through these gateways.
    pub(crate) fn load(&self, apis: &[Api]) -> Load {
        Load::start(apis, &self.app, &self.urls(), &self.oracle)
    }

    /// Waits until every acknowledged delivery arrived, and is on record as delivered and nothing else.
    pub(crate) async fn settle(&self, api: &Api, what: &str) -> Result<Verdict> {
        let verdict = self.oracle.settle(&[&self.receiver], SETTLE).await?;
        say(&format!("{what}: {verdict}"));
        self.say_doubled();
        self.recorded(api).await?;
        Ok(verdict)
    }

    /// Tells which deliveries were made more than once, and how far apart.
    fn say_doubled(&self) {
        for (_, url) in &self.endpoints {
            let path = url.strip_prefix(&self.receiver.url("")).unwrap_or_default();
            let mut seen: HashMap<String, Instant> = HashMap::new();
            for request in self
                .receiver
                .requests(path)
                .iter()
                .filter(|request| request.succeeded())
            {
                let id = request.webhook_id();
                if let Some(first) = seen.insert(id.to_owned(), request.at) {
                    say(&format!("{path}: {id} again after {:?}", request.at - first));
                }
            }
        }
    }

    /// Waits until the store says of every endpoint: so many delivered, nothing else.
    async fn recorded(&self, api: &Api) -> Result<()> {
        let messages = self.oracle.expected() / self.endpoints.len();
        for (endpoint, url) in &self.endpoints {
            wait_for_every(LOOK, &format!("the records of {url}"), SETTLE, async || {
                let path = format!("/app/{}/endpoint/{endpoint}/stats", self.app);
                let stats = api.get(&path).await?;
                let wanted =
                    json!({"success": messages, "pending": 0, "sending": 0, "fail": 0, "canceled": 0});
                let done = wanted
                    .as_object()
                    .into_iter()
                    .flatten()
                    .all(|(name, count)| stats[name] == *count);
                Ok(if done {
                    Poll::Ready(())
                } else {
                    Poll::NotYet(format!("{stats}, not {wanted}"))
                })
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until `count` more requests came in than now.
    async fn arrivals(&self, count: usize, limit: Duration) -> Result<()> {
        let wanted = self.receiver.total() + count;
        wait_for_every(LOOK, &format!("{count} more deliveries"), limit, async || {
            let total = self.receiver.total();
            Ok(if total >= wanted {
                Poll::Ready(())
            } else {
                Poll::NotYet(format!("{total} of {wanted}"))
            })
        })
        .await
    }
}

/// Servers of the test's own.
struct Servers {
    rabbit: RabbitServer,
    redis: RedisServer,
    postgres: PostgresServer,
}

impl Servers {
    async fn start() -> Result<Self> {
        let (rabbit, redis, postgres) = tokio::try_join!(
            RabbitServer::start(),
            RedisServer::start(),
            PostgresServer::start()
        )?;
        Ok(Self {
            rabbit,
            redis,
            postgres,
        })
    }

    fn shared(&self) -> Shared {
        Shared::on(self.rabbit.url(), self.redis.url(), self.postgres.url())
    }

    /// One process of each role on these servers.
    async fn stack(&self) -> Result<Stack> {
        let (name, value) = SHORT_LEASE;
        Stack::scaled_on(self.shared(), Shape::SMALL, |builder| builder.env(name, value)).await
    }
}

/// Gives a process a metrics listener, from its next start on, and returns the URL.
fn with_metrics(process: &mut Postrider) -> Result<String> {
    let address = format!("127.0.0.1:{}", free_port()?);
    process.set_env("POSTRIDER_METRICS__LISTEN", Some(&address));
    Ok(format!("http://{address}/metrics"))
}

/// The sum of a metric over its labels.
async fn metric(url: &str, name: &str) -> Result<f64> {
    let text = reqwest::get(url).await?.error_for_status()?.text().await?;
    let lines = text.lines().filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ']))
    });
    let values = lines.map(|line| {
        line.split_whitespace()
            .next_back()
            .unwrap_or_default()
            .parse::<f64>()
    });
    values
        .sum::<Result<f64, _>>()
        .with_context(|| format!("{name} in {text}"))
}

/// Waits until `/health/ready` of a process says this: `field` is `state`, and it is ready or not.
async fn wait_health(
    process: &Postrider,
    field: &str,
    state: &str,
    ready: bool,
    limit: Duration,
) -> Result<()> {
    let url = format!("{}/health/ready", process.url());
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .build()?;
    wait_for_every(LOOK, &format!("{field} to be {state}"), limit, async || {
        let response = match client.get(&url).send().await {
            Ok(response) => response,
            Err(error) => return Ok(Poll::NotYet(error.to_string())),
        };
        let status = response.status();
        let body: Value = response.json().await?;
        ensure!(status.is_success() == (body["ready"] == true), "{status} {body}");
        let holds = body[field] == state && body["ready"] == ready;
        Ok(if holds {
            Poll::Ready(())
        } else {
            Poll::NotYet(body.to_string())
        })
    })
    .await
}

/// The processes' ids, to see later that none was restarted.
fn pids(stack: &mut Stack) -> Vec<Option<u32>> {
    stack.processes_mut().map(|process| process.pid()).collect()
}

/// Tells a run's counts; nextest shows them with `--no-capture` and when a test fails.
#[expect(
    clippy::print_stderr,
    reason = "counts of duplicates are worth seeing, not worth failing for"
)]
fn say(line: &str) {
    eprintln!("{line}");
}

//! Every query of the dashboards and the alerts, asked of a real Prometheus while everything happens that they tell of.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use postrider_testkit::name_server::{Answer, NameServer};
use postrider_testkit::receiver::{Receiver, Reply, Script};
use postrider_testkit::services::free_port;
use postrider_testkit::wait::{Poll, wait_for_every};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::{LOOK, SHORT_LEASE, Servers, with_metrics};
use crate::api::{Api, id_of};
use crate::stack::{SOON, Shape, Shared, Stack};

const QUERIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/queries.py");
/// For how long each fault lasts: several scrapes, which come every second.
const FAULT: Duration = Duration::from_secs(5);
/// What all of it may take: the faults, and then what the program that asks has patience for.
const LIMIT: Duration = Duration::from_secs(170);
/// Every outcome of an attempt.
const OUTCOMES: [&str; 10] = [
    "2xx", "3xx", "4xx", "5xx", "blocked", "connect", "dns", "http", "timeout", "tls",
];

#[tokio::test]
async fn every_query_has_something_to_show_when_it_happens() -> Result<()> {
    let (mut servers, names) = (Servers::start().await?, NameServer::start().await?);
    names.on("silent.test", Answer::Silence);
    names.on("private.test", Answer::Addresses(vec![[10, 0, 0, 1].into()]));
    let asked = names.address().to_string();
    let mut stack = Stack::scaled_on(servers.shared(), Shape::SMALL, |builder| {
        builder
            .env(SHORT_LEASE.0, SHORT_LEASE.1)
            .env("POSTRIDER_EGRESS__NAME_SERVERS", &asked)
            // Few slots, so that some deliveries are held.
            .env("POSTRIDER_DELIVERY__MAX_IN_FLIGHT", "16")
    })
    .await?;
    let mut targets = vec![];
    for (role, process) in ["gateway", "worker", "ledger"]
        .into_iter()
        .zip(stack.processes_mut())
    {
        let url = with_metrics(process)?;
        process.start_again().await?;
        targets.push((role, url));
    }
    let receiver = Receiver::start().await?;
    let life = Life::new(&stack.api(), &receiver).await?;
    let living = tokio::spawn(life.run());

    let mut asking = Command::new("python3");
    asking
        .arg(QUERIES)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    for (role, url) in &targets {
        let address = url.trim_start_matches("http://").trim_end_matches("/metrics");
        asking.arg("--scrape").arg(format!("{role}={address}"));
    }
    let mut asking = asking.spawn().context("python3 cannot be run")?;
    let mut lines = BufReader::new(asking.stdout.take().context("no output")?).lines();
    let begun = timeout(SOON, lines.next_line()).await;
    if begun.is_ok_and(|line| line.is_ok_and(|line| line.as_deref() == Some("scraping"))) {
        trouble(&mut servers, &stack).await?;
    }
    let output = timeout(LIMIT, asking.wait_with_output())
        .await
        .context("the queries are still being asked")??;
    living.abort();
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for outcome in OUTCOMES {
        let series = format!("postrider_attempts_total{{outcome=\"{outcome}\"}}");
        ensure!(
            series_value(&targets[1].1, &series).await? > 0.0,
            "no attempt ended as {outcome}"
        );
    }
    Ok(())
}

/// One series of a process.
async fn series_value(url: &str, series: &str) -> Result<f64> {
    let text = reqwest::get(url).await?.text().await?;
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    found.with_context(|| format!("no {series} in {text}"))
}

/// Takes away and gives back what Postrider leans on, and lays frames where they do not belong.
async fn trouble(servers: &mut Servers, stack: &Stack) -> Result<()> {
    let (shared, api) = (stack.shared.as_ref().context("scaled out")?, stack.api());
    servers.redis.stop().await?;
    sleep(FAULT).await;
    servers.redis.start_again().await?;
    lay_astray(shared).await?;

    let app = api.app().await?;
    servers.rabbit.stop().await?;
    wait_for_every(LOOK, "a message to be refused", SOON, async || {
        let answer = send(&api, &app, None).await?;
        Ok(if answer == StatusCode::SERVICE_UNAVAILABLE {
            Poll::Ready(())
        } else {
            Poll::NotYet(answer.to_string())
        })
    })
    .await?;
    sleep(FAULT).await;
    servers.rabbit.start_again().await
}

/// A frame that nobody can read, in the queue of those that were found where nobody takes them.
async fn lay_astray(shared: &Shared) -> Result<()> {
    let connection = Connection::connect(&shared.amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let queue = shared.queue("stray");
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let properties = BasicProperties::default();
    channel
        .basic_publish("".into(), queue.as_str().into(), options, b"\xff\xff", properties)
        .await?;
    Ok(connection.close(200, "done".into()).await?)
}

/// The status of the answer to one message.
async fn send(api: &Api, app: &str, key: Option<&str>) -> Result<StatusCode> {
    let headers: Vec<_> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
    let body = json!({"eventType": "test.event", "payload": {}});
    let path = format!("/app/{app}/msg");
    Ok(api
        .call_with(Method::POST, &path, Some(&body), &headers)
        .await?
        .status)
}

/// Applications that all sorts of things happen to.
struct Life {
    api: Api,
    /// An endpoint for each outcome.
    mixed: String,
    /// A slow receiver, a rate limit, a pause.
    waiting: String,
    /// Has a quota.
    limited: String,
}

impl Life {
    async fn new(api: &Api, receiver: &Receiver) -> Result<Self> {
        receiver.on("/moved", Script::always(Reply::Redirect(receiver.url("/"))));
        receiver.on("/missing", Script::always(Reply::Status(404)));
        receiver.on("/broken", Script::always(Reply::Status(500)));
        receiver.on("/closing", Script::always(Reply::Close));
        receiver.on("/hanging", Script::always(Reply::Hang));
        let slow = Duration::from_millis(500);
        receiver.on("/slow", Script::always(Reply::Status(200)).delay(slow));
        let mixed = api.app().await?;
        let mut urls: Vec<String> = ["/fine", "/moved", "/missing", "/broken", "/closing", "/hanging"]
            .map(|path| receiver.url(path))
            .to_vec();
        urls.extend([
            format!("http://127.0.0.1:{}/", free_port()?),
            receiver.url("/").replace("http:", "https:"),
            "http://nowhere.test/".to_owned(),
            "http://silent.test/".to_owned(),
            "http://private.test/".to_owned(),
        ]);
        for url in urls {
            let body = json!({"url": url, "timeoutSeconds": 1, "retrySchedule": [1, 1, 1, 1, 1]});
            api.endpoint_with(&mixed, body).await?;
        }
        let waiting = api.app().await?;
        api.endpoint(&waiting, &receiver.url("/slow")).await?;
        let throttled = json!({"url": receiver.url("/throttled"), "throttleRate": 2});
        api.endpoint_with(&waiting, throttled).await?;
        let paused = json!({"url": receiver.url("/paused"), "paused": true});
        api.endpoint_with(&waiting, paused).await?;
        let limited = id_of(
            &api.post("/app", &json!({"name": "limited", "throttleRate": 1}))
                .await?,
        )?;
        Ok(Self {
            api: api.clone(),
            mixed,
            waiting,
            limited,
        })
    }

    /// Sends to all of them until it is dropped; what is refused is refused.
    async fn run(self) {
        let start = Instant::now();
        loop {
            let key = format!("{:?}", start.elapsed());
            let slow = (0..10).map(|_| send(&self.api, &self.waiting, None));
            let refused = (0..3).map(|_| send(&self.api, &self.limited, None));
            let _ = tokio::join!(
                send(&self.api, &self.mixed, Some(&key)),
                join_all(slow),
                join_all(refused)
            );
            // Once more under its key.
            let _ = send(&self.api, &self.mixed, Some(&key)).await;
            sleep(LOOK).await;
        }
    }
}

//! Looking at a running process from outside: its metrics, its memory, its queues; and at when requests came.

use std::time::Duration;

use anyhow::{Context, Result};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use postrider_testkit::process::{Builder, Postrider};
use postrider_testkit::receiver::Recorded;
use postrider_testkit::services::free_port;
use postrider_testkit::wait::{Poll, wait_for};
use tokio::time::Instant;

use crate::stack::{SOON, Shared, Stack};

/// A process whose metrics can be read.
#[derive(Debug)]
pub(crate) struct Watched {
    port: u16,
    pid: u32,
}

impl Watched {
    /// Starts the process with a listener for its metrics.
    pub(crate) async fn start(builder: Builder) -> Result<(Postrider, Self)> {
        let port = free_port()?;
        let process = builder
            .env("POSTRIDER_METRICS__LISTEN", format!("127.0.0.1:{port}"))
            .start()
            .await?;
        let pid = process.pid().context("it has just been started")?;
        Ok((process, Self { port, pid }))
    }

    /// Adds a worker with these settings to a stack.
    pub(crate) async fn worker(stack: &mut Stack, settings: &[(&str, &str)]) -> Result<Self> {
        let shared = stack.shared.as_ref().context("the stack is embedded")?;
        let builder = settings
            .iter()
            .fold(shared.builder("worker"), |builder, (name, value)| {
                builder.env(name, value)
            });
        let (process, watched) = Self::start(builder).await?;
        stack.workers.push(process);
        Ok(watched)
    }

    /// The sum of a metric's samples, or one of its series; 0 when it has none yet.
    pub(crate) async fn metric(&self, name: &str) -> Result<f64> {
        let url = format!("http://127.0.0.1:{}/metrics", self.port);
        let text = reqwest::Client::builder()
            .no_proxy()
            .build()?
            .get(url)
            .send()
            .await?
            .text()
            .await?;
        let samples = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let found = series == name || series.split('{').next()? == name;
            found.then(|| value.parse::<f64>().ok()).flatten()
        });
        Ok(samples.sum())
    }

    /// Waits until a metric is at least this.
    pub(crate) async fn reaches(&self, name: &str, least: f64) -> Result<()> {
        wait_for(&format!("{name} to reach {least}"), SOON, async || {
            let value = self.metric(name).await?;
            Ok(if value >= least {
                Poll::Ready(())
            } else {
                Poll::NotYet(value.to_string())
            })
        })
        .await
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }
}

/// Counts what is ready in queues, over a connection of its own.
pub(crate) struct Queues(Connection);

impl Queues {
    pub(crate) async fn connect(shared: &Shared) -> Result<Self> {
        Ok(Self(
            Connection::connect(&shared.amqp, ConnectionProperties::default()).await?,
        ))
    }

    /// Frames that are ready in the queues of these kinds, `deliver` or `retry`, each of 4 shards.
    pub(crate) async fn ready(&self, shared: &Shared, kinds: &[&str]) -> Result<u32> {
        let channel = self.0.create_channel().await?;
        let mut ready = 0;
        for shard in 0..4 {
            for kind in kinds {
                let options = QueueDeclareOptions {
                    passive: true,
                    ..QueueDeclareOptions::default()
                };
                let name = shared.queue(&format!("{kind}.{shard}"));
                let queue = channel
                    .queue_declare(name.as_str().into(), options, FieldTable::default())
                    .await?;
                ready += queue.message_count();
            }
        }
        channel.close(200, "done".into()).await?;
        Ok(ready)
    }

    /// Waits until no more than this is ready in the queues of these kinds.
    pub(crate) async fn wait_ready(
        &self,
        shared: &Shared,
        kinds: &[&str],
        most: u32,
        limit: Duration,
    ) -> Result<()> {
        let what = format!("at most {most} frames in the queues {kinds:?}");
        wait_for(&what, limit, async || {
            let ready = self.ready(shared, kinds).await?;
            Ok(if ready <= most {
                Poll::Ready(())
            } else {
                Poll::NotYet(format!("{ready} frames"))
            })
        })
        .await
    }
}

/// When requests came, in order.
pub(crate) fn times(requests: &[Recorded]) -> Vec<Instant> {
    let mut times: Vec<Instant> = requests.iter().map(|request| request.at).collect();
    times.sort_unstable();
    times
}

/// The most requests in any window of this length that begins at `from` or later.
pub(crate) fn most_within(times: &[Instant], from: Instant, window: Duration) -> usize {
    let first = times.partition_point(|at| *at < from);
    (first..times.len())
        .map(|start| times.partition_point(|at| *at < times[start] + window) - start)
        .max()
        .unwrap_or(0)
}

/// The fewest requests in any window of this length between `from` and `until`; `None` when there is no such window.
pub(crate) fn least_within(
    times: &[Instant],
    from: Instant,
    until: Instant,
    window: Duration,
) -> Option<usize> {
    let candidates = std::iter::once(from).chain(times.iter().copied());
    // Right after a request a window holds the fewest.
    candidates
        .filter(|start| *start >= from && *start + window <= until)
        .map(|start| {
            times.partition_point(|at| *at <= start + window) - times.partition_point(|at| *at <= start)
        })
        .min()
}

//! Hung endpoints keep to themselves: 20 of 100 hang, share envelopes and partly a host with healthy ones.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use postrider_testkit::receiver::{Receiver, Reply, Script};
use postrider_testkit::wait::{Poll, wait_for_every};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use crate::api::Api;
use crate::stack::{SOON, Shape, Shared, Stack};
use crate::watch::{Queues, Watched};

const APPS: usize = 5;
/// Of each application; the others hang.
const HEALTHY: usize = 16;
const HUNG: usize = 4;
const MESSAGES: u32 = 20;
const EVERY: Duration = Duration::from_millis(250);
/// The deadline of an attempt: the longest there is, so that a busy machine gets everything else done meanwhile.
const DEADLINE: Duration = Duration::from_secs(30);
const SLOTS: usize = 100;
const SETTINGS: [(&str, &str); 3] = [
    ("POSTRIDER_DELIVERY__TIMEOUT", "30s"),
    ("POSTRIDER_DELIVERY__MAX_IN_FLIGHT", "100"),
    // Envelopes that hung deliveries held on to would use this up at once.
    ("POSTRIDER_DELIVERY__PREFETCH", "4"),
];

/// The endpoints: `mixed` is a host that healthy and hung ones share.
struct Hosts {
    healthy: Receiver,
    mixed: Receiver,
    hung: Receiver,
}

impl Hosts {
    async fn start() -> Result<Self> {
        let hosts = Self {
            healthy: Receiver::start().await?,
            mixed: Receiver::start().await?,
            hung: Receiver::start().await?,
        };
        for app in 0..APPS {
            for n in 0..HUNG {
                let (receiver, path) = hosts.hung_endpoint(app, n);
                receiver.on(&path, Script::always(Reply::Hang));
            }
        }
        Ok(hosts)
    }

    fn healthy_endpoint(&self, app: usize, n: usize) -> (&Receiver, String) {
        let receiver = if n.is_multiple_of(4) {
            &self.mixed
        } else {
            &self.healthy
        };
        (receiver, format!("/healthy/{app}/{n}"))
    }

    fn hung_endpoint(&self, app: usize, n: usize) -> (&Receiver, String) {
        let receiver = if n.is_multiple_of(2) {
            &self.mixed
        } else {
            &self.hung
        };
        (receiver, format!("/hung/{app}/{n}"))
    }

    async fn create(&self, api: &Api) -> Result<Vec<String>> {
        let mut apps = vec![];
        for index in 0..APPS {
            let app = api.app().await?;
            for n in 0..HEALTHY {
                let (receiver, path) = self.healthy_endpoint(index, n);
                api.endpoint(&app, &receiver.url(&path)).await?;
            }
            for n in 0..HUNG {
                let (receiver, path) = self.hung_endpoint(index, n);
                api.endpoint(&app, &receiver.url(&path)).await?;
            }
            apps.push(app);
        }
        Ok(apps)
    }

    /// When attempts at hung endpoints began.
    fn hung_times(&self) -> Vec<Instant> {
        let mut times = vec![];
        for app in 0..APPS {
            for n in 0..HUNG {
                let (receiver, path) = self.hung_endpoint(app, n);
                receiver.with_requests(&path, |requests| {
                    times.extend(requests.iter().map(|request| request.at));
                });
            }
        }
        times.sort_unstable();
        times
    }

    /// When deliveries to healthy endpoints arrived, and how many were to.
    fn healthy_times(&self) -> (Vec<Instant>, usize) {
        let mut times = vec![];
        for app in 0..APPS {
            for n in 0..HEALTHY {
                let (receiver, path) = self.healthy_endpoint(app, n);
                receiver.with_requests(&path, |requests| {
                    times.extend(requests.iter().map(|request| request.at));
                });
            }
        }
        (times, APPS * HEALTHY * MESSAGES as usize)
    }
}

#[tokio::test]
async fn healthy_endpoints_get_everything_while_a_fifth_hangs() -> Result<()> {
    let shape = Shape {
        workers: 0,
        ..Shape::SMALL
    };
    let mut stack = Stack::scaled_on(Shared::on_shared_services().await?, shape, |builder| builder).await?;
    let worker = Watched::worker(&mut stack, &SETTINGS).await?;
    let hosts = Hosts::start().await?;
    let over = isolated(&stack.api(), &hosts, &worker).await?;
    // Nothing fresh stands in a queue behind them: what the hung ones are to get is in flight, or waits in the store.
    // What came with the last healthy delivery may take its moment, but not until the first hung attempt is over.
    let shared = stack.shared.as_ref().context("scaled out")?;
    let queues = Queues::connect(shared).await?;
    let left = over.saturating_duration_since(Instant::now());
    queues.wait_ready(shared, &["deliver"], 0, left).await
}

#[tokio::test]
async fn healthy_endpoints_get_everything_embedded() -> Result<()> {
    let builder = SETTINGS
        .iter()
        .fold(postrider_testkit::process::Postrider::builder(), |b, (k, v)| {
            b.env(k, v)
        });
    let (process, watched) = Watched::start(builder).await?;
    let api = Api::new(&process.url(), &process.admin_key().await?);
    isolated(&api, &Hosts::start().await?, &watched).await?;
    Ok(())
}

/// Returns when the first hung attempt is over.
async fn isolated(api: &Api, hosts: &Hosts, worker: &Watched) -> Result<Instant> {
    let apps = hosts.create(api).await?;
    let memory = worker.memory()?;
    let start = Instant::now();
    let sending = try_join_all(apps.iter().map(|app| async move {
        for n in 0..MESSAGES {
            sleep_until(start + EVERY * n).await;
            api.send(app, json!({"n": n})).await?;
        }
        anyhow::Ok(())
    }));
    let mut peak = 0.0_f64;
    let watching = wait_for_every(
        Duration::from_millis(100),
        "the healthy deliveries",
        SOON,
        async || {
            peak = peak.max(worker.metric("postrider_attempts_in_flight").await?);
            let (arrived, expected) = hosts.healthy_times();
            Ok(if arrived.len() >= expected {
                Poll::Ready(())
            } else {
                Poll::NotYet(format!("{} of {expected}", arrived.len()))
            })
        },
    );
    let (sent, watched) = tokio::join!(sending, watching);
    sent?;
    watched?;

    let (arrived, expected) = hosts.healthy_times();
    ensure!(
        arrived.len() == expected,
        "something came twice: {}",
        arrived.len()
    );
    let last = arrived.iter().max().context("arrivals")?;
    let hung = hosts.hung_times();
    let first_hung = *hung.first().context("nothing hung")?;
    ensure!(
        *last < first_hung + DEADLINE,
        "the last healthy delivery came after {:?}, when the first hung attempt was over",
        *last - first_hung
    );
    ensure!(peak >= 4.0 && peak <= SLOTS as f64, "{peak} attempts in flight");
    // Endpoints that are slow, or of which nothing is known yet, leave half of the slots to the others.
    let held = most_at_once(&hung, DEADLINE);
    ensure!(held <= SLOTS / 2, "hung endpoints held {held} of {SLOTS} slots");
    let grown = worker.memory()?.saturating_sub(memory);
    ensure!(grown < 128 << 20, "memory grew by {} MiB", grown >> 20);
    Ok(first_hung + DEADLINE)
}

/// The most attempts in flight at once, when each takes `time`. A little less is counted, for clocks and closing.
fn most_at_once(starts: &[Instant], time: Duration) -> usize {
    let time = time - Duration::from_millis(500);
    (0..starts.len())
        .map(|last| last + 1 - starts.partition_point(|at| *at + time < starts[last]))
        .max()
        .unwrap_or(0)
}

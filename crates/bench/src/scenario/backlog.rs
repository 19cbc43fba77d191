//! Draining what waited: the workers are away while messages are accepted, and come back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::timeout;

use super::Outcome;
use crate::clock::{now_ns, seconds};
use crate::figures::{Generated, figure};
use crate::lab::Lab;
use crate::load::{Load, delivered, start_generator};
use crate::subject::floor::{Floor, Shape};
use crate::subject::postrider::Postrider;
use crate::subject::{Target, Tenants};
use crate::usage;

const FAN_OUT: u16 = 10;
/// Deliveries that wait.
const DELIVERIES: u64 = 1_000_000;
const DELIVERIES_QUICK: u64 = 50_000;
/// How long nothing may arrive before what is missing counts as missing.
const QUIET: Duration = Duration::from_secs(60);
/// How long they may take in all.
const DRAIN_LIMIT: Duration = Duration::from_secs(600);

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    let wanted = if lab.quick { DELIVERIES_QUICK } else { DELIVERIES };
    let about = format!(
        "{wanted} deliveries (fan-out 10, 1 KiB) are accepted with no worker; then one worker starts"
    );
    let mut outcome = Outcome::new("backlog", &about);
    let (mut bare, mut postrider) = (Vec::new(), Vec::new());
    for _ in 0..lab.rounds {
        bare.push(by_the_bare_loop(lab, wanted).await?);
        postrider.push(by_postrider(lab, wanted).await?);
    }
    for (subject, rounds) in [("bare loop", &bare), ("postrider", &postrider)] {
        let mut tell = |what: &str, of: fn(&Drained) -> f64| {
            outcome.found(&format!("{subject}: {what}"), rounds.iter().map(of), None);
        };
        tell("deliveries accepted without a worker, per s", |round| {
            round.accepted_per_s
        });
        tell("deliveries drained, per s", |round| round.drained_per_s);
        tell("CPU-seconds while they drain, per 10,000", |round| {
            round.cpu_s_per_10k
        });
    }
    let ratio = postrider.iter().zip(&bare);
    let ratio = ratio.map(|(postrider, bare)| postrider.drained_per_s / bare.drained_per_s);
    outcome.found("drained / bare loop", ratio, None);
    Ok(outcome)
}

/// What a backlog cost.
struct Drained {
    accepted_per_s: f64,
    drained_per_s: f64,
    cpu_s_per_10k: f64,
}

async fn by_the_bare_loop(lab: &Lab, wanted: u64) -> Result<Drained> {
    let shape = Shape {
        endpoints: FAN_OUT,
        fan_out: FAN_OUT,
        ..Shape::BARE
    };
    let mut floor = Floor::start_idle(lab, shape).await?;
    let filled = Filled::fill(lab, &floor.target, wanted).await?;
    floor.add_worker(lab)?;
    let drained = filled.drained(lab).await?;
    floor.stop().await?;
    Ok(drained)
}

async fn by_postrider(lab: &Lab, wanted: u64) -> Result<Drained> {
    let mut postrider = Postrider::start(lab, 0).await?;
    let base = lab.receiver.url("ok", 0);
    let tenants = Tenants {
        apps: 1,
        endpoints: usize::from(FAN_OUT),
        one_type_each: false,
        limited: false,
    };
    let target = postrider
        .target(&tenants, |number| format!("{base}/{number}"))
        .await?;
    let filled = Filled::fill(lab, &target, wanted).await?;
    postrider.add(lab, "worker").await?;
    let drained = filled.drained(lab).await?;
    postrider.stop(lab).await?;
    Ok(drained)
}

/// A backlog that waits for a worker from this moment on.
struct Filled {
    deliveries: u64,
    accepted_per_s: f64,
    since_ns: u64,
    cpu_s: f64,
}

impl Filled {
    async fn fill(lab: &Lab, target: &Target, wanted: u64) -> Result<Self> {
        lab.receiver.reset(target.fan_out).await?;
        let mut accepted = 0;
        let started_ns = now_ns();
        while accepted * target.fan_out < wanted {
            let load = Load::saturating(5.0);
            let generator = start_generator(lab, target, &load, accepted)?;
            let output = generator.output(Duration::from_secs(60)).await?;
            let generated: Generated = serde_json::from_str(output.trim())?;
            ensure!(
                generated.accepted > 0 && generated.refused.is_empty(),
                "not everything is accepted: {:?}",
                generated.first_refusal
            );
            accepted += generated.accepted;
        }
        let deliveries = accepted * target.fan_out;
        Ok(Self {
            deliveries,
            accepted_per_s: figure(deliveries) / seconds(started_ns, now_ns()),
            since_ns: now_ns(),
            cpu_s: cpu_s(lab)?,
        })
    }

    /// Waits until all of it is delivered.
    async fn drained(self, lab: &Lab) -> Result<Drained> {
        let came = timeout(DRAIN_LIMIT, delivered(lab, self.deliveries, QUIET))
            .await
            .with_context(|| format!("the backlog is not drained within {DRAIN_LIMIT:?}"))??;
        let cpu_s = cpu_s(lab)? - self.cpu_s;
        ensure!(
            came >= self.deliveries,
            "{came} of {} deliveries came",
            self.deliveries
        );
        let counts = lab.receiver.counts().await?;
        let last_ns = counts.iter().map(|group| group.last_ns).max().unwrap_or_default();
        Ok(Drained {
            accepted_per_s: self.accepted_per_s,
            drained_per_s: figure(came) / seconds(self.since_ns, last_ns),
            cpu_s_per_10k: cpu_s / figure(came) * 10_000.0,
        })
    }
}

/// CPU-seconds of all processes so far, of which none ends while a backlog drains.
fn cpu_s(lab: &Lab) -> Result<f64> {
    let table = usage::children(&lab.names.get())?;
    Ok(table.values().map(|usage| usage.cpu_s).sum())
}

//! One measurement: put load on a target, wait until all is delivered and recorded, and add up what it cost.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::clock::{now_ns, seconds};
use crate::disk;
use crate::figures::{Generated, Quantiles, Received, figure};
use crate::generate::plan::{Mode, Plan, Route};
use crate::lab::Lab;
use crate::process::Process;
use crate::subject::{Recorded, Target};
use crate::usage;

/// How often the receiver is asked.
const LOOK: Duration = Duration::from_millis(20);
/// How often the record is asked, at most; a question that takes long is asked less often.
const RECORD_LOOK: Duration = Duration::from_millis(100);
/// How often memory is looked at.
const MEMORY_LOOK: Duration = Duration::from_millis(250);
/// What the generator may take longer than it was told.
const GENERATOR_GRACE: Duration = Duration::from_secs(120);

/// Processes that every subject uses.
const SHARED: [&str; 4] = ["broker", "redis", "postgres", "receiver"];

/// What load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) mode: Mode,
    pub(crate) connections: usize,
    pub(crate) seconds: f64,
    /// Messages at most.
    pub(crate) messages: Option<u64>,
    /// Bytes of the payload.
    pub(crate) bytes: usize,
    /// How long nothing may arrive before what is missing counts as missing.
    pub(crate) quiet: Duration,
    /// Whether to wait for the record.
    pub(crate) recorded: bool,
}

impl Load {
    /// 64 producers, each sending again when it is answered; 1 KiB.
    pub(crate) fn saturating(seconds: f64) -> Self {
        Self {
            mode: Mode::Closed,
            connections: 64,
            seconds,
            messages: None,
            bytes: 1_024,
            quiet: Duration::from_secs(20),
            recorded: true,
        }
    }

    /// A fixed rate, whatever the answers do; 1 KiB.
    pub(crate) fn steady(per_second: f64, seconds: f64) -> Self {
        Self {
            mode: Mode::Open { per_second },
            ..Self::saturating(seconds)
        }
    }
}

/// What came of it. Rates count from the first request.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measure {
    /// When the first request was due, by [`now_ns`].
    pub(crate) started_ns: u64,
    pub(crate) accepted: u64,
    /// Answers other than 2xx by status; 0 stands for broken connections.
    pub(crate) refused: BTreeMap<u16, u64>,
    pub(crate) first_refusal: Option<String>,
    /// Deliveries that were due and did not come.
    pub(crate) missing: u64,
    /// Deliveries that were still to come when the last message was answered: a backlog, if they are many.
    pub(crate) behind: u64,
    /// Deliveries without a signature, of those that should have one.
    pub(crate) unsigned: u64,
    /// Whether the machine came to rest before.
    pub(crate) rested: bool,
    pub(crate) duplicates: u64,
    pub(crate) accepted_per_s: f64,
    /// Until the last delivery.
    pub(crate) delivered_per_s: f64,
    /// Until the last was recorded; without a record, until the last delivery.
    pub(crate) sustained_per_s: f64,
    /// From the intended time of sending to the answer.
    pub(crate) accept: Quantiles,
    /// From the intended time of sending to the arrival, by group of endpoints.
    pub(crate) groups: Vec<Received>,
    /// CPU-seconds per 10,000 deliveries by process.
    pub(crate) cpu_s_per_10k: BTreeMap<String, f64>,
    pub(crate) rss_before_mib: BTreeMap<String, f64>,
    pub(crate) rss_peak_mib: BTreeMap<String, f64>,
    /// The longest that the disk took meanwhile to sync a page.
    pub(crate) disk_sync_max_ms: f64,
}

impl Measure {
    /// End-to-end latency of the first group.
    pub(crate) fn end_to_end(&self) -> Quantiles {
        self.groups.first().map(|group| group.latency).unwrap_or_default()
    }

    /// CPU of all processes together.
    pub(crate) fn cpu_total(&self) -> f64 {
        self.cpu_s_per_10k.values().sum()
    }

    pub(crate) fn cpu_of(&self, process: &str) -> Option<f64> {
        self.cpu_s_per_10k.get(process).copied()
    }
}

/// Warms up, lets the machine come to rest, and measures.
pub(crate) async fn measure(lab: &Lab, target: &Target, load: &Load) -> Result<Measure> {
    let warm_up = Load {
        seconds: if lab.quick { 0.5 } else { 1.5 },
        recorded: false,
        ..*load
    };
    once(lab, target, &warm_up).await.context("while warming up")?;
    lab.rest().await?;
    once(lab, target, load).await
}

/// Measures without warming up.
pub(crate) async fn once(lab: &Lab, target: &Target, load: &Load) -> Result<Measure> {
    lab.receiver.reset(target.fan_out).await?;
    let mut record = if load.recorded {
        target.record.watch(target.fan_out).await?
    } else {
        None
    };
    let disk = disk::Probe::start(&lab.file("disk"))?;
    let before = usage::children(&lab.names.get())?;
    let mut peaks = Peaks(before.clone());
    let (generated, behind, ended) = {
        let generator = start_generator(lab, target, load, 0)?;
        let run = async {
            let limit = Duration::from_secs_f64(load.seconds) + GENERATOR_GRACE;
            let output = generator.output(limit).await?;
            let line = output.lines().last().context("the generator said nothing")?;
            let generated: Generated = serde_json::from_str(line).with_context(|| line.to_owned())?;
            let expected = generated.accepted * target.fan_out;
            let behind = expected.saturating_sub(came(lab).await?);
            delivered(lab, expected, load.quiet).await?;
            let ended = match &mut record {
                None => None,
                Some(record) => Some(recorded(record, expected, load.quiet).await?),
            };
            anyhow::Ok((generated, behind, ended))
        };
        peaks.watch_while(lab, run).await?
    };
    let after = usage::children(&lab.names.get())?;
    let groups = lab.receiver.stats().await?;
    Ok(sum_up(
        target,
        &generated,
        ended,
        groups,
        &Seen {
            behind,
            rested: lab.rested.get(),
            before,
            after,
            peaks: peaks.0,
            disk: disk.end()?,
        },
    ))
}

/// Starts the generator with a plan in a file.
pub(crate) fn start_generator(lab: &Lab, target: &Target, load: &Load, first_number: u64) -> Result<Process> {
    let mut route = target.route.clone();
    if let Route::Postrider { run, .. } = &mut route {
        // Numbers begin anew in each measurement, and idempotency keys must not.
        *run = postrider_testkit::services::unique_name("k");
    }
    let plan = Plan {
        targets: target.addresses.clone(),
        route,
        connections: load.connections,
        mode: load.mode,
        seconds: load.seconds,
        messages: load.messages,
        first_number,
        bytes: load.bytes,
    };
    let path = lab.file("plan.json");
    std::fs::write(&path, serde_json::to_vec(&plan)?)?;
    lab.start_own(
        "generator",
        &["generate".into(), format!("--plan={}", path.display())],
    )
}

/// Deliveries that have come.
async fn came(lab: &Lab) -> Result<u64> {
    let groups = lab.receiver.counts().await?;
    Ok(groups.iter().map(|group| group.delivered).sum())
}

/// Waits until so many deliveries came, or none for `quiet`.
pub(crate) async fn delivered(lab: &Lab, expected: u64, quiet: Duration) -> Result<u64> {
    let mut last = (0, Instant::now());
    loop {
        let sum = came(lab).await?;
        if sum != last.0 {
            last = (sum, Instant::now());
        }
        if sum >= expected || last.1.elapsed() > quiet {
            return Ok(sum);
        }
        sleep(LOOK).await;
    }
}

/// Waits until so many are recorded, or none for `quiet`; the moment when it was seen.
async fn recorded(record: &mut Recorded, expected: u64, quiet: Duration) -> Result<u64> {
    let mut last = (0, Instant::now());
    loop {
        let asked = Instant::now();
        let count = timeout(quiet, record.count())
            .await
            .context("the record does not answer")??;
        // The answer is as old as the question.
        let seen_ns = now_ns().saturating_sub(u64::try_from(asked.elapsed().as_nanos())?);
        if count != last.0 {
            last = (count, Instant::now());
        }
        if count >= expected {
            return Ok(seen_ns);
        }
        anyhow::ensure!(
            last.1.elapsed() <= quiet,
            "{count} of {expected} deliveries are on record, and no more come"
        );
        sleep(RECORD_LOOK.max(asked.elapsed() * 5)).await;
    }
}

/// What was seen beside the generator and the receiver.
struct Seen {
    behind: u64,
    rested: bool,
    before: usage::Table,
    after: usage::Table,
    peaks: usage::Table,
    disk: Duration,
}

fn sum_up(
    target: &Target,
    generated: &Generated,
    recorded_ns: Option<u64>,
    groups: Vec<Received>,
    seen: &Seen,
) -> Measure {
    let delivered: u64 = groups.iter().map(|group| group.delivered).sum();
    let last_ns = groups.iter().map(|group| group.last_ns).max().unwrap_or_default();
    let start = generated.started_ns;
    let rate = |count: u64, end_ns: u64| figure(count) / seconds(start, end_ns).max(1e-9);
    let per_10k = |cpu_s: f64| cpu_s / figure(delivered.max(1)) * 10_000.0;
    let concerned = |name: &str| SHARED.contains(&name) || target.processes.iter().any(|own| own == name);
    let mut cpu_s_per_10k: BTreeMap<String, f64> = seen
        .after
        .iter()
        .filter(|(name, _)| concerned(name))
        .map(|(name, usage)| {
            let earlier = seen.before.get(name).map_or(0.0, |usage| usage.cpu_s);
            (name.clone(), per_10k((usage.cpu_s - earlier).max(0.0)))
        })
        .collect();
    cpu_s_per_10k.insert("generator".into(), per_10k(generated.cpu_s));
    let rss = |table: &usage::Table| {
        let lines = table.iter().filter(|(name, _)| concerned(name));
        lines.map(|(name, usage)| (name.clone(), usage.rss_mib)).collect()
    };
    let is_signed = matches!(target.route, Route::Postrider { .. });
    let unsigned = groups.iter().map(|group| group.unsigned).sum();
    Measure {
        started_ns: start,
        accepted: generated.accepted,
        refused: generated.refused.clone(),
        first_refusal: generated.first_refusal.clone(),
        missing: (generated.accepted * target.fan_out).saturating_sub(delivered),
        behind: seen.behind,
        unsigned: if is_signed { unsigned } else { 0 },
        rested: seen.rested,
        duplicates: groups.iter().map(|group| group.duplicates).sum(),
        accepted_per_s: rate(generated.accepted, generated.ended_ns),
        delivered_per_s: rate(delivered, last_ns),
        sustained_per_s: rate(delivered, recorded_ns.unwrap_or(last_ns).max(last_ns)),
        accept: generated.accept,
        groups,
        cpu_s_per_10k,
        rss_before_mib: rss(&seen.before),
        rss_peak_mib: rss(&seen.peaks),
        disk_sync_max_ms: seen.disk.as_secs_f64() * 1_000.0,
    }
}

/// The most memory seen, by process.
#[derive(Default)]
pub(crate) struct Peaks(usage::Table);

impl Peaks {
    /// Of one process, in MiB.
    pub(crate) fn of(&self, process: &str) -> Option<f64> {
        self.0.get(process).map(|usage| usage.rss_mib)
    }

    fn note(&mut self, table: &usage::Table) {
        for (name, usage) in table {
            let peak = self.0.entry(name.clone()).or_insert(*usage);
            peak.rss_mib = peak.rss_mib.max(usage.rss_mib);
        }
    }

    /// Looks from time to time until the work is done.
    async fn watch_while<T>(&mut self, lab: &Lab, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            let soon = Instant::now() + MEMORY_LOOK;
            if let Some(done) = self.watch_until(lab, soon, work.as_mut()).await? {
                return Ok(done);
            }
        }
    }

    /// Looks from time to time until the work is done or it is so late; what was done.
    pub(crate) async fn watch_until<T>(
        &mut self,
        lab: &Lab,
        deadline: Instant,
        mut work: Pin<&mut impl Future<Output = Result<T>>>,
    ) -> Result<Option<T>> {
        while Instant::now() < deadline {
            let soon = deadline.min(Instant::now() + MEMORY_LOOK);
            match timeout_at(soon, &mut work).await {
                Ok(done) => return done.map(Some),
                Err(_) => self.note(&usage::children(&lab.names.get())?),
            }
        }
        Ok(None)
    }
}

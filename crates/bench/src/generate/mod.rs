//! The load generator, a process of its own: many connections, one thread.
//!
//! *Closed*: each connection sends its next message when the last is answered; that is how saturation is found. *Open*:
//! messages have their time whether or not the last is answered, and latency counts from that time, so that a server that
//! stalls is not spared the requests it would have got (no coordinated omission).

mod client;
mod closed;
mod open;
pub(crate) mod plan;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use parking_lot::Mutex;

use crate::clock::now_ns;
use crate::figures::{Generated, Latencies};
use crate::usage;

use plan::{Mode, Plan, Requests};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// A file with the plan, JSON.
    #[arg(long)]
    plan: PathBuf,
}

/// What the connections share.
struct Run {
    plan: Plan,
    requests: Requests,
    next: AtomicU64,
    results: Mutex<Results>,
}

struct Results {
    accepted: u64,
    refused: BTreeMap<u16, u64>,
    first_refusal: Option<String>,
    latencies: Latencies,
    ended_ns: u64,
}

/// Carries the plan out and prints what came of it, JSON, on one line.
#[expect(clippy::print_stdout, reason = "the bench reads it there")]
pub(crate) async fn run(options: Options) -> Result<()> {
    let text = std::fs::read(&options.plan).context("cannot read the plan")?;
    let plan: Plan = serde_json::from_slice(&text).context("not a plan")?;
    ensure!(
        !plan.targets.is_empty() && plan.connections > 0,
        "a plan has targets and connections"
    );
    let run = Arc::new(Run {
        requests: Requests::new(&plan)?,
        next: AtomicU64::new(plan.first_number),
        results: Mutex::new(Results {
            accepted: 0,
            refused: BTreeMap::new(),
            first_refusal: None,
            latencies: Latencies::new(),
            ended_ns: 0,
        }),
        plan,
    });
    let started_ns = now_ns();
    match run.plan.mode {
        Mode::Closed => closed::run(&run).await?,
        Mode::Open { per_second } => open::run(&run, per_second).await?,
    }
    let results = run.results.lock();
    let generated = Generated {
        started_ns,
        ended_ns: results.ended_ns,
        accepted: results.accepted,
        refused: results.refused.clone(),
        first_refusal: results.first_refusal.clone(),
        accept: results.latencies.summary(),
        cpu_s: usage::own_cpu_s()?,
    };
    println!("{}", serde_json::to_string(&generated)?);
    Ok(())
}

impl Run {
    /// The number of the next message, none if the plan has no more.
    fn next_number(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let end = self
            .plan
            .messages
            .map(|messages| self.plan.first_number + messages);
        end.is_none_or(|end| number < end).then_some(number)
    }

    fn answered(&self, intended_ns: u64, answer: &client::Answer) {
        let now = now_ns();
        let mut results = self.results.lock();
        results.ended_ns = now;
        match answer {
            client::Answer::Accepted => {
                results.accepted += 1;
                results.latencies.record(now.saturating_sub(intended_ns));
            }
            client::Answer::Refused { status, body } => {
                *results.refused.entry(status.as_u16()).or_default() += 1;
                results
                    .first_refusal
                    .get_or_insert_with(|| format!("{status}: {body}"));
            }
            client::Answer::Broken { error } => {
                *results.refused.entry(0).or_default() += 1;
                results.first_refusal.get_or_insert_with(|| error.clone());
            }
        }
    }
}

/// Whether a refusal asks for patience, which is then given.
async fn back_off(answer: &client::Answer) {
    let slow_down = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
    match answer {
        client::Answer::Refused { status, .. } if slow_down.contains(status) => {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        client::Answer::Broken { .. } => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        client::Answer::Accepted | client::Answer::Refused { .. } => {}
    }
}

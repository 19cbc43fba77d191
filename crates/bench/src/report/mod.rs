//! What is told at the end: a table, a JSON file, a chart.

mod chart;
mod machine;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::figures::{Spread, figure};
use crate::load::Measure;
use crate::scenario::{Aim, Finding, Outcome, Row};

use machine::Machine;

/// A sync of the disk that took so long is told: who waited for the disk then waited as long.
const DISK_STOOD_MS: f64 = 50.0;

/// With a larger part still on its way when the last message is accepted, the rate was not a steady one.
const STEADY: f64 = 0.05;

/// Fewer rounds are good for a look, not for a result.
pub(crate) const ROUNDS_MIN: usize = 3;

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
    pub(crate) outcomes: Vec<Outcome>,
    /// Scenarios that broke, and why.
    pub(crate) failures: BTreeMap<String, String>,
    /// How long each scenario took.
    pub(crate) seconds: BTreeMap<String, f64>,
}

impl Report {
    pub(crate) fn new(rounds: usize, quick: bool, postrider: Option<&Path>, commit: String) -> Self {
        Self {
            machine: Machine::look(postrider, commit),
            rounds,
            quick,
            outcomes: Vec::new(),
            failures: BTreeMap::new(),
            seconds: BTreeMap::new(),
        }
    }

    /// Machine, versions and date.
    pub(crate) fn headline(&self) -> String {
        format!(
            "{}\nrounds: {}{}; figures are medians (min–max)\n",
            self.machine,
            self.rounds,
            if self.rounds < ROUNDS_MIN {
                ", too few for a result"
            } else {
                ""
            }
        )
    }

    /// All findings, once more.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::from("FINDINGS\n");
        for outcome in &self.outcomes {
            for finding in &outcome.findings {
                text.push_str(&format!("  {:<16} {}\n", outcome.scenario, line(finding)));
            }
            for what in &outcome.unmeasured {
                text.push_str(&format!("  {:<16} {what}: NOT MEASURED\n", outcome.scenario));
            }
        }
        for (name, error) in &self.failures {
            text.push_str(&format!("  {name:<16} FAILED: {error}\n"));
        }
        text
    }

    /// Writes `bench.json` and `bench.svg`.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self)?;
        std::fs::write(directory.join("bench.json"), json).context("cannot write bench.json")?;
        std::fs::write(directory.join("bench.svg"), chart::svg(self)).context("cannot write bench.svg")
    }
}

/// A scenario as text.
pub(crate) fn table(outcome: &Outcome) -> String {
    let mut text = format!("{}: {}\n", outcome.scenario.to_uppercase(), outcome.about);
    text.push_str(&format!(
        "  {:<26} {:>22} {:>22} {:>22} {:>9} {:>9} {:>7} {:>7}\n",
        "", "accepted/s", "delivered/s", "recorded/s", "p50 ms", "p99 ms", "cpu/10k", "broker"
    ));
    for row in &outcome.rows {
        text.push_str(&row_text(row, outcome.at_once));
    }
    for finding in &outcome.findings {
        text.push_str(&format!("  → {}\n", line(finding)));
    }
    text
}

fn row_text(row: &Row, at_once: bool) -> String {
    let spread = |of: &dyn Fn(&Measure) -> f64| Spread::of(row.rounds.iter().map(of));
    let rate = |of: &dyn Fn(&Measure) -> f64| {
        spread(of).map_or("-".to_owned(), |s| {
            format!("{:.0} ({:.0}–{:.0})", s.median, s.min, s.max)
        })
    };
    let short =
        |of: &dyn Fn(&Measure) -> f64| spread(of).map_or("-".to_owned(), |s| format!("{:.2}", s.median));
    let mut text = format!(
        "  {:<26} {:>22} {:>22} {:>22} {:>9} {:>9} {:>7} {:>7}\n",
        row.subject,
        rate(&|m| m.accepted_per_s),
        rate(&|m| m.delivered_per_s),
        rate(&|m| m.sustained_per_s),
        short(&|m| m.end_to_end().p50_ms),
        short(&|m| m.end_to_end().p99_ms),
        short(&Measure::cpu_total),
        short(&|m| m.cpu_of("broker").unwrap_or_default()),
    );
    let first = row.rounds.first();
    let processes = first
        .map(|measure| measure.cpu_s_per_10k.keys())
        .into_iter()
        .flatten();
    let costs: Vec<String> = processes
        .filter_map(|name| {
            let cpu = Spread::of(row.rounds.iter().filter_map(|m| m.cpu_of(name)))?.median;
            (cpu >= 0.005).then(|| format!("{name} {cpu:.2} s{}", memory(row, name)))
        })
        .collect();
    if !costs.is_empty() {
        text.push_str(&format!("  {:<26} {}\n", "", costs.join(" · ")));
    }
    let stood = spread(&|m| m.disk_sync_max_ms).map_or(0.0, |syncs| syncs.max);
    if stood >= DISK_STOOD_MS {
        text.push_str(&format!(
            "  {:<26} the disk took up to {stood:.0} ms for a sync\n",
            ""
        ));
    }
    let behind = spread(&|m| figure(m.behind) / figure(due(m).max(1)));
    if let Some(behind) = behind.filter(|behind| at_once && behind.median > STEADY) {
        text.push_str(&format!(
            "  {:<26} {:.0} % were still on their way when the last message was accepted: not a steady state\n",
            "",
            behind.median * 100.0
        ));
    }
    let restless = row.rounds.iter().filter(|m| !m.rested).count();
    if restless > 0 {
        text.push_str(&format!(
            "  {:<26} the machine did not come to rest before {restless} of {} rounds\n",
            "",
            row.rounds.len()
        ));
    }
    let sum = |of: &dyn Fn(&Measure) -> u64| row.rounds.iter().map(of).sum::<u64>();
    let refused = sum(&|m| m.refused.values().sum());
    let (missing, duplicates) = (sum(&|m| m.missing), sum(&|m| m.duplicates));
    let unsigned = sum(&|m| m.unsigned);
    if refused + missing + duplicates + unsigned > 0 {
        let why = row
            .rounds
            .iter()
            .find_map(|m| m.first_refusal.clone())
            .unwrap_or_default();
        text.push_str(&format!(
            "  {:<26} refused {refused}, missing {missing}, twice {duplicates}, unsigned {unsigned} {why}\n",
            ""
        ));
    }
    text
}

/// Deliveries that were due.
fn due(measure: &Measure) -> u64 {
    let came: u64 = measure.groups.iter().map(|group| group.delivered).sum();
    came + measure.missing
}

/// What a process held before the load and at its peak, the most of all rounds; nothing for one that ends with its load.
fn memory(row: &Row, name: &str) -> String {
    let most = |of: fn(&Measure) -> &BTreeMap<String, f64>| {
        let rounds = row.rounds.iter().filter_map(|m| of(m).get(name).copied());
        Spread::of(rounds).map(|spread| spread.max)
    };
    match (most(|m| &m.rss_before_mib), most(|m| &m.rss_peak_mib)) {
        (Some(rest), Some(peak)) => format!(", {rest:.0}–{peak:.0} MiB"),
        _ => String::new(),
    }
}

fn line(finding: &Finding) -> String {
    let Spread { min, median, max } = finding.spread;
    let figures = format!("{}: {median:.2} ({min:.2}–{max:.2})", finding.what);
    match finding.aim {
        None => figures,
        Some(aim) => {
            let verdict = if aim.is_met(median) { "met" } else { "MISSED" };
            let (sign, value) = match aim {
                Aim::AtLeast(value) => ("≥", value),
                Aim::AtMost(value) => ("≤", value),
            };
            format!("{figures}, aim {sign} {value}: {verdict}")
        }
    }
}

/// Prints for people.
#[expect(clippy::print_stdout, reason = "the report is what the bench is for")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

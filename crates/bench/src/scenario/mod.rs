//! The scenarios: each a file. Those that compare with the bare loop have it in the same run; the others compare Postrider
//! with itself: with more processes, with receivers that hang, with more on record.

mod backlog;
mod embedded;
mod fan_out;
mod growth;
mod isolation;
mod latency;
mod processes;
mod saturation;
mod sizes;
mod soak;
mod storm;
mod tls;

use anyhow::Result;
use serde::Serialize;

use crate::figures::Spread;
use crate::lab::Lab;
use crate::load::{Load, Measure, measure};
use crate::subject::Target;

/// The names of all scenarios, in the order in which they run.
pub(crate) const NAMES: [&str; 14] = [
    "saturation-1",
    "saturation-1000",
    "fan-out-10",
    "latency",
    "size-10k",
    "size-256k",
    "embedded",
    "isolation",
    "storm",
    "processes",
    "tls",
    "backlog",
    "growth",
    "soak",
];

/// Those that `--quick` runs.
pub(crate) const QUICK: [&str; 4] = ["saturation-1", "fan-out-10", "latency", "embedded"];

/// The names of Postrider's processes, scaled out.
const ROLES: [&str; 3] = ["gateway", "worker", "ledger"];

/// Runs a scenario.
pub(crate) async fn run(lab: &mut Lab, name: &str) -> Result<Outcome> {
    match name {
        "saturation-1" => Box::pin(saturation::one(lab)).await,
        "saturation-1000" => Box::pin(saturation::thousand(lab)).await,
        "fan-out-10" => Box::pin(fan_out::run(lab)).await,
        "latency" => Box::pin(latency::run(lab)).await,
        "size-10k" => Box::pin(sizes::run(lab, "size-10k", 10 * 1_024)).await,
        "size-256k" => Box::pin(sizes::run(lab, "size-256k", 256 * 1_024)).await,
        "embedded" => Box::pin(embedded::run(lab)).await,
        "isolation" => Box::pin(isolation::run(lab)).await,
        "storm" => Box::pin(storm::run(lab)).await,
        "processes" => Box::pin(processes::run(lab)).await,
        "tls" => Box::pin(tls::run(lab)).await,
        "backlog" => Box::pin(backlog::run(lab)).await,
        "growth" => Box::pin(growth::run(lab)).await,
        "soak" => Box::pin(soak::run(lab)).await,
        other => anyhow::bail!("there is no scenario {other:?}; there are {}", NAMES.join(", ")),
    }
}

/// What a scenario found.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) scenario: String,
    /// What was done, in a sentence.
    pub(crate) about: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) findings: Vec<Finding>,
    /// Aims without a figure.
    pub(crate) unmeasured: Vec<String>,
}

/// The rounds of one subject under one load.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) subject: String,
    pub(crate) rounds: Vec<Measure>,
}

/// A figure that counts, mostly a ratio taken round by round.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) what: String,
    pub(crate) spread: Spread,
    pub(crate) aim: Option<Aim>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

impl Aim {
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl Outcome {
    fn new(scenario: &str, about: &str) -> Self {
        Self {
            scenario: scenario.into(),
            about: about.into(),
            rows: Vec::new(),
            findings: Vec::new(),
            unmeasured: Vec::new(),
        }
    }

    /// Adds rows, one for each load, with room for the rounds.
    fn subjects<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        self.rows.extend(names.into_iter().map(|name| Row {
            subject: name.into(),
            rounds: Vec::new(),
        }));
    }

    /// A figure of each round of a row.
    fn finding(&mut self, what: &str, row: usize, of: impl Fn(&Measure) -> Option<f64>, aim: Option<Aim>) {
        let figures = self
            .rows
            .get(row)
            .map(|row| row.rounds.iter().filter_map(of).collect::<Vec<_>>());
        self.found(what, figures, aim);
    }

    /// A figure of each round of a row over the same of another row.
    fn ratio(
        &mut self,
        what: &str,
        (row, over): (usize, usize),
        of: impl Fn(&Measure) -> Option<f64>,
        aim: Option<Aim>,
    ) {
        let ratio = |(a, b): (&Measure, &Measure)| Some(of(a)? / of(b).filter(|under| *under > 0.0)?);
        let rows = self.rows.get(row).zip(self.rows.get(over));
        let figures = rows.map(|(row, over)| {
            let pairs = row.rounds.iter().zip(&over.rounds);
            pairs.filter_map(ratio).collect::<Vec<_>>()
        });
        self.found(what, figures, aim);
    }

    /// Notes figures, or that there are none for an aim.
    fn found(&mut self, what: &str, figures: Option<Vec<f64>>, aim: Option<Aim>) {
        match Spread::of(figures.unwrap_or_default()) {
            Some(spread) => self.findings.push(Finding {
                what: what.into(),
                spread,
                aim,
            }),
            None if aim.is_some() => self.unmeasured.push(what.into()),
            None => {}
        }
    }
}

/// Runs the targets in turn, round after round, each under its load.
async fn in_turn(lab: &Lab, outcome: &mut Outcome, targets: &[(&Target, Load)]) -> Result<()> {
    let first = outcome.rows.len();
    outcome.subjects(targets.iter().map(|(target, _)| target.name.as_str()));
    for _ in 0..lab.rounds {
        for (row, (target, load)) in targets.iter().enumerate() {
            let measured = measure(lab, target, load).await?;
            outcome.rows[first + row].rounds.push(measured);
        }
    }
    Ok(())
}

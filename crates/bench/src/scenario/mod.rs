//! The scenarios: each a file, those of rates together. Each has the bare loop in the same run, in turn, but `tls`, whose
//! hosts it cannot talk to. Those of rates and latency have the second floor, too; the others compare Postrider with itself: with more
//! processes, with receivers that hang, with more on record.

mod backlog;
mod embedded;
mod growth;
mod isolation;
mod latency;
mod processes;
mod rates;
mod soak;
mod storm;
mod tls;

use anyhow::{Result, ensure};
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

/// Those that tell something without the binary: of the floors.
const OF_THE_FLOORS: [&str; 6] = [
    "saturation-1",
    "saturation-1000",
    "fan-out-10",
    "latency",
    "size-10k",
    "size-256k",
];

/// The names of Postrider's processes, scaled out.
const ROLES: [&str; 3] = ["gateway", "worker", "ledger"];

/// Runs a scenario.
pub(crate) async fn run(lab: &mut Lab, name: &str) -> Result<Outcome> {
    ensure!(
        lab.postrider.is_some() || OF_THE_FLOORS.contains(&name),
        "it needs the `postrider` binary: build it beside this program, or name one with `--postrider`"
    );
    match name {
        "saturation-1" => Box::pin(rates::one_endpoint(lab)).await,
        "saturation-1000" => Box::pin(rates::thousand_endpoints(lab)).await,
        "fan-out-10" => Box::pin(rates::fan_out(lab)).await,
        "latency" => Box::pin(latency::run(lab)).await,
        "size-10k" => Box::pin(rates::size(lab, "size-10k", 10 * 1_024)).await,
        "size-256k" => Box::pin(rates::size(lab, "size-256k", 256 * 1_024)).await,
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
    /// Whether everything that was accepted is due to arrive while it is measured.
    pub(crate) all_due: bool,
    /// Whether it is due to arrive at once.
    pub(crate) at_once: bool,
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
            all_due: true,
            at_once: true,
        }
    }

    /// Adds rows, one for each load, with room for the rounds.
    fn subjects(&mut self, names: impl IntoIterator<Item = String>) {
        self.rows.extend(names.into_iter().map(|subject| Row {
            subject,
            rounds: Vec::new(),
        }));
    }

    /// What was refused, what did not arrive though it was due, and what was not signed.
    pub(crate) fn failed(&self) -> u64 {
        let rounds = self.rows.iter().flat_map(|row| &row.rounds);
        rounds
            .map(|round| {
                let missing = if self.all_due { round.missing } else { 0 };
                missing + round.unsigned + round.refused.values().sum::<u64>()
            })
            .sum()
    }

    /// A figure of each round of a row.
    fn finding(&mut self, what: &str, row: usize, of: impl Fn(&Measure) -> Option<f64>, aim: Option<Aim>) {
        let rounds = self.rows.get(row).map(|row| &row.rounds);
        let figures: Vec<f64> = rounds.into_iter().flatten().filter_map(of).collect();
        self.found(what, figures, aim);
    }

    /// A figure of each round of a row over the same of another row.
    fn ratio(
        &mut self,
        what: &str,
        (row, over): (usize, usize),
        of: impl Fn(&Measure) -> Option<f64> + Copy,
        aim: Option<Aim>,
    ) {
        self.ratio_of(what, (row, of), (over, of), aim);
    }

    /// A figure of each round of a row over one of another row.
    fn ratio_of(
        &mut self,
        what: &str,
        (row, of): (usize, impl Fn(&Measure) -> Option<f64>),
        (over, under): (usize, impl Fn(&Measure) -> Option<f64>),
        aim: Option<Aim>,
    ) {
        self.found(what, self.over((row, of), (over, under)), aim);
    }

    /// A figure of each round of a row over one of another row.
    fn over(
        &self,
        (row, of): (usize, impl Fn(&Measure) -> Option<f64>),
        (over, under): (usize, impl Fn(&Measure) -> Option<f64>),
    ) -> Vec<f64> {
        let ratio = |(a, b): (&Measure, &Measure)| Some(of(a)? / under(b).filter(|under| *under > 0.0)?);
        let rows = self.rows.get(row).zip(self.rows.get(over));
        let pairs = rows.map(|(row, over)| row.rounds.iter().zip(&over.rounds));
        pairs.into_iter().flatten().filter_map(ratio).collect()
    }

    /// Compares the rates of two rows, each by its ratio to the bare loop's rate that was measured beside it: minutes of load
    /// slow some machines down.
    fn compare(
        &mut self,
        what: &str,
        [row, beside]: [usize; 2],
        [over, over_beside]: [usize; 2],
        aim: Option<Aim>,
    ) {
        let sustained = |measure: &Measure| Some(measure.sustained_per_s);
        let rounds = self.over((row, sustained), (beside, sustained)).into_iter();
        let others = self.over((over, sustained), (over_beside, sustained));
        let ratios: Vec<f64> = rounds.zip(others).map(|(row, over)| row / over).collect();
        self.found(what, ratios, aim);
    }

    /// Notes figures, or that there are none for an aim.
    fn found(&mut self, what: &str, figures: impl IntoIterator<Item = f64>, aim: Option<Aim>) {
        match Spread::of(figures) {
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

/// Runs the targets in turn, round after round, each under its load. Each round begins with another one, so that none is
/// always measured after the same other.
async fn in_turn(lab: &Lab, outcome: &mut Outcome, targets: &[(&Target, Load)]) -> Result<()> {
    let first = outcome.rows.len();
    outcome.subjects(targets.iter().map(|(target, _)| target.name.clone()));
    for round in 0..lab.rounds {
        for turn in 0..targets.len() {
            let row = (round + turn) % targets.len();
            let (target, load) = &targets[row];
            let measured = measure(lab, target, load).await?;
            outcome.rows[first + row].rounds.push(measured);
        }
    }
    Ok(())
}

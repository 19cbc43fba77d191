//! The sub-command that runs scenarios.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;
use crate::report::{self, Report};
use crate::scenario;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Few and short scenarios: under three minutes.
    #[arg(long)]
    quick: bool,
    /// Rounds of each comparison, at least 3 for a result that counts.
    #[arg(long, default_value_t = report::ROUNDS_MIN)]
    rounds: usize,
    /// Scenarios to run, comma-separated; all (or the quick ones) without it.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The binary to measure; by default the `postrider` beside this program.
    #[arg(long)]
    postrider: Option<PathBuf>,
    /// What the binaries were built of, for the report; `cargo xtask bench` tells it.
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// Where `bench.json` and `bench.svg` are written.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let names: Vec<String> = match (options.only.is_empty(), options.quick) {
        (false, _) => options.only.clone(),
        (true, true) => scenario::QUICK.map(Into::into).into(),
        (true, false) => scenario::NAMES.map(Into::into).into(),
    };
    for name in &names {
        ensure!(
            scenario::NAMES.contains(&name.as_str()),
            "there is no scenario {name:?}; there are {}",
            scenario::NAMES.join(", ")
        );
    }
    ensure!(options.rounds > 0, "at least one round");
    let postrider = match options.postrider {
        Some(path) => Some(path),
        None => beside_us()?,
    };
    std::fs::create_dir_all(&options.out).context("cannot make the directory of the report")?;
    let mut report = Report::new(
        options.rounds,
        options.quick,
        postrider.as_deref(),
        options.commit,
    );
    report::say(&report.headline());
    let mut lab = Lab::open(postrider, options.rounds, options.quick).await?;
    for name in &names {
        let started = std::time::Instant::now();
        match scenario::run(&mut lab, name).await {
            Ok(outcome) => {
                report::say(&report::table(&outcome));
                report.outcomes.push(outcome);
            }
            Err(error) => {
                report::say(&format!("{name}: FAILED: {error:#}\n"));
                report.failures.insert(name.clone(), format!("{error:#}"));
            }
        }
        report
            .seconds
            .insert(name.clone(), started.elapsed().as_secs_f64());
        report.write(&options.out)?;
    }
    lab.close().await?;
    report::say(&report.summary());
    ensure!(
        report.failures.is_empty(),
        "{} scenario(s) failed",
        report.failures.len()
    );
    let failed: u64 = report.outcomes.iter().map(scenario::Outcome::failed).sum();
    ensure!(
        failed == 0,
        "{failed} message(s) were refused, did not arrive or were not signed, told above: the figures do not count"
    );
    let unmeasured = report.outcomes.iter().map(|outcome| outcome.unmeasured.len());
    let unmeasured: usize = unmeasured.sum();
    ensure!(
        unmeasured == 0,
        "{unmeasured} aim(s) without a figure, told above; without `--postrider` a built one must lie beside this program"
    );
    Ok(())
}

/// The `postrider` in this program's own directory, if there is one.
fn beside_us() -> Result<Option<PathBuf>> {
    let path = std::env::current_exe()?.with_file_name("postrider");
    Ok(path.is_file().then_some(path))
}

//! From the moment a message was to be sent to its arrival: on a quiet system, at half load, near saturation.

use anyhow::Result;

use super::{Aim, Outcome, in_turn};
use crate::figures::Spread;
use crate::lab::Lab;
use crate::load::{Load, Measure};
use crate::subject::floor::Floors;
use crate::subject::postrider::Postrider;
use crate::subject::{Target, Tenants};

/// Parts of its own saturation at which a subject is measured.
const PARTS: [f64; 2] = [0.5, 0.8];
/// The floors and Postrider.
const SUBJECTS: usize = 3;

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    let about =
        "open loop, 1 KiB, one endpoint: at 100/s, then at half and at 80 % of the subject's own saturation";
    let mut outcome = Outcome::new("latency", about);
    let floors = Floors::start(lab, 1, 1).await?;
    let mut subjects = vec![&floors.bare.target, &floors.batched.target];
    if lab.postrider.is_some() {
        let postrider = Postrider::start(lab, 1).await?;
        let base = lab.receiver.url("ok", 0);
        let target = postrider
            .target(&Tenants::ONE, |number| format!("{base}/{number}"))
            .await?;
        subjects.push(&target);
        compare(lab, &mut outcome, &subjects).await?;
        postrider.stop(lab).await?;
    } else {
        compare(lab, &mut outcome, &subjects).await?;
    }
    floors.stop().await?;
    findings(lab, &mut outcome);
    Ok(outcome)
}

fn findings(lab: &Lab, outcome: &mut Outcome) {
    let p50 = |measure: &Measure| Some(measure.end_to_end().p50_ms);
    let p99 = |measure: &Measure| Some(measure.end_to_end().p99_ms);
    // Without the binary there are no rows of it, and its aims are told as not measured.
    let row = |load: usize| match lab.postrider {
        Some(_) => SUBJECTS * load + 2,
        None => usize::MAX,
    };
    outcome.finding("p50 at 100/s, ms", row(0), p50, Some(Aim::AtMost(2.5)));
    outcome.ratio(
        "p99 at 100/s / bare loop",
        (row(0), 0),
        p99,
        Some(Aim::AtMost(3.0)),
    );
    if !lab.quick {
        let sustained = |measure: &Measure| Some(measure.sustained_per_s);
        outcome.ratio(
            "sustained, saturated / bare loop",
            (row(1), SUBJECTS),
            sustained,
            None,
        );
        // After saturation and the first part of it.
        outcome.finding("p99 at 80 %, ms", row(3), p99, Some(Aim::AtMost(50.0)));
    }
}

/// Rows: each subject at 100/s, then each at saturation, at the first part of it, and at the second.
async fn compare(lab: &Lab, outcome: &mut Outcome, subjects: &[&Target]) -> Result<()> {
    let quiet = Load::steady(100.0, if lab.quick { 3.0 } else { 20.0 });
    each(lab, outcome, subjects, "100/s", |_| quiet).await?;
    if lab.quick {
        return Ok(());
    }
    let first = outcome.rows.len();
    each(lab, outcome, subjects, "saturated", |_| Load::saturating(10.0)).await?;
    let saturation: Vec<f64> = outcome.rows[first..]
        .iter()
        .filter_map(|row| Spread::of(row.rounds.iter().map(|measure| measure.sustained_per_s)))
        .map(|spread| spread.median)
        .collect();
    for part in PARTS {
        let what = format!("{:.0} %", part * 100.0);
        let load = |subject: usize| Load {
            connections: 256,
            ..Load::steady(saturation[subject] * part, 15.0)
        };
        each(lab, outcome, subjects, &what, load).await?;
    }
    Ok(())
}

/// The subjects in turn, each under the load that is its own.
async fn each(
    lab: &Lab,
    outcome: &mut Outcome,
    subjects: &[&Target],
    what: &str,
    load: impl Fn(usize) -> Load,
) -> Result<()> {
    let named: Vec<Target> = subjects.iter().map(|target| target.under(what)).collect();
    let targets: Vec<_> = named
        .iter()
        .enumerate()
        .map(|(subject, target)| (target, load(subject)))
        .collect();
    in_turn(lab, outcome, &targets).await
}

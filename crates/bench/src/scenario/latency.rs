//! From the moment a message was to be sent to its arrival: on a quiet system, at half load, near saturation.

use anyhow::Result;

use super::{Aim, Outcome, in_turn};
use crate::lab::Lab;
use crate::load::{Load, Measure, measure};
use crate::subject::floor::{Floor, Shape};
use crate::subject::postrider::Postrider;
use crate::subject::{Target, Tenants};

/// Parts of its own saturation at which a subject is measured.
const PARTS: [f64; 2] = [0.5, 0.8];

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    let about =
        "open loop, 1 KiB, one endpoint: at 100/s, then at half and at 80 % of the subject's own saturation";
    let mut outcome = Outcome::new("latency", about);
    let floor = Floor::start(lab, Shape::BARE).await?;
    if lab.postrider.is_some() {
        let postrider = Postrider::start(lab, 1).await?;
        let base = lab.receiver.url("ok", 0);
        let target = postrider
            .target(&Tenants::ONE, |number| format!("{base}/{number}"))
            .await?;
        compare(lab, &mut outcome, &[&floor.target, &target]).await?;
        postrider.stop().await?;
    } else {
        compare(lab, &mut outcome, &[&floor.target]).await?;
    }
    floor.stop().await?;
    let p50 = |measure: &Measure| Some(measure.end_to_end().p50_ms);
    let p99 = |measure: &Measure| Some(measure.end_to_end().p99_ms);
    outcome.finding("p50 at 100/s, ms", 1, p50, Some(Aim::AtMost(2.5)));
    outcome.ratio("p99 at 100/s / bare loop", (1, 0), p99, Some(Aim::AtMost(3.0)));
    if !lab.quick {
        outcome.finding("p99 at 80 %, ms", 5, p99, Some(Aim::AtMost(50.0)));
    }
    Ok(outcome)
}

/// Rows: each subject at 100/s, then each at the first part, then each at the second.
async fn compare(lab: &Lab, outcome: &mut Outcome, subjects: &[&Target]) -> Result<()> {
    let quiet = Load {
        recorded: false,
        ..Load::steady(100.0, if lab.quick { 3.0 } else { 20.0 })
    };
    let named = |target: &Target, what: &str| Target {
        name: format!("{}, {what}", target.name),
        ..target.clone()
    };
    let at_100: Vec<Target> = subjects.iter().map(|target| named(target, "100/s")).collect();
    in_turn(
        lab,
        outcome,
        &at_100.iter().map(|target| (target, quiet)).collect::<Vec<_>>(),
    )
    .await?;
    if lab.quick {
        return Ok(());
    }
    let mut saturation = Vec::new();
    for target in subjects {
        saturation.push(
            measure(lab, target, &Load::saturating(10.0))
                .await?
                .sustained_per_s,
        );
    }
    for part in PARTS {
        let targets: Vec<Target> = subjects
            .iter()
            .map(|target| named(target, &format!("{:.0} %", part * 100.0)))
            .collect();
        let loads = saturation.iter().map(|rate| Load {
            connections: 256,
            recorded: false,
            ..Load::steady(rate * part, 15.0)
        });
        in_turn(lab, outcome, &targets.iter().zip(loads).collect::<Vec<_>>()).await?;
    }
    Ok(())
}

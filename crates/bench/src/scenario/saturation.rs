//! As much as the machine can do, with one endpoint and with a thousand.

use anyhow::Result;

use super::{Aim, Outcome, in_turn};
use crate::lab::Lab;
use crate::load::Load;
use crate::subject::Tenants;
use crate::subject::floor::{Floor, Shape};
use crate::subject::postrider::Postrider;

pub(super) async fn one(lab: &mut Lab) -> Result<Outcome> {
    let outcome = Outcome::new("saturation-1", "64 producers, closed loop, 1 KiB, one endpoint");
    run(lab, outcome, &Tenants::ONE).await
}

pub(super) async fn thousand(lab: &mut Lab) -> Result<Outcome> {
    let about =
        "64 producers, closed loop, 1 KiB, 1,000 endpoints of 100 applications, each message to one of them";
    let tenants = Tenants {
        apps: 100,
        endpoints: 10,
        one_type_each: true,
        limited: true,
    };
    run(lab, Outcome::new("saturation-1000", about), &tenants).await
}

async fn run(lab: &Lab, mut outcome: Outcome, tenants: &Tenants) -> Result<Outcome> {
    let load = Load::saturating(if lab.quick { 2.5 } else { 10.0 });
    let endpoints = u16::try_from(tenants.apps * tenants.endpoints)?;
    let bare = Floor::start(
        lab,
        Shape {
            endpoints,
            ..Shape::BARE
        },
    )
    .await?;
    let batched = Floor::start(
        lab,
        Shape {
            endpoints,
            ..Shape::BATCHED
        },
    )
    .await?;
    if lab.postrider.is_some() {
        let postrider = Postrider::start(lab, 1).await?;
        let base = lab.receiver.url("ok", 0);
        let target = postrider
            .target(tenants, |number| format!("{base}/{number}"))
            .await?;
        let targets = [(&bare.target, load), (&batched.target, load), (&target, load)];
        in_turn(lab, &mut outcome, &targets).await?;
        postrider.stop().await?;
    } else {
        in_turn(
            lab,
            &mut outcome,
            &[(&bare.target, load), (&batched.target, load)],
        )
        .await?;
    }
    bare.stop().await?;
    batched.stop().await?;
    let sustained = |measure: &crate::load::Measure| Some(measure.sustained_per_s);
    let burst = |measure: &crate::load::Measure| Some(measure.delivered_per_s);
    outcome.ratio("bare loop × 32, rate / bare loop", (1, 0), burst, None);
    outcome.ratio(
        "sustained / bare loop",
        (2, 0),
        sustained,
        Some(Aim::AtLeast(1.2)),
    );
    outcome.ratio("burst / bare loop", (2, 0), burst, Some(Aim::AtLeast(1.5)));
    outcome.ratio(
        "broker's CPU / bare loop",
        (2, 0),
        |m| m.cpu_of("broker"),
        Some(Aim::AtMost(0.2)),
    );
    outcome.ratio("all CPU / bare loop", (2, 0), |m| Some(m.cpu_total()), None);
    Ok(outcome)
}

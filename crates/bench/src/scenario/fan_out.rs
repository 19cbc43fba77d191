//! Each message to ten endpoints.

use anyhow::Result;

use super::{Outcome, in_turn};
use crate::lab::Lab;
use crate::load::Load;
use crate::subject::Tenants;
use crate::subject::floor::{Floor, Shape};
use crate::subject::postrider::Postrider;

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    let mut outcome = Outcome::new(
        "fan-out-10",
        "64 producers, closed loop, 1 KiB, each message to 10 endpoints; rates count deliveries",
    );
    let load = Load::saturating(if lab.quick { 1.5 } else { 10.0 });
    let floor = Floor::start(
        lab,
        Shape {
            endpoints: 10,
            fan_out: 10,
            ..Shape::BARE
        },
    )
    .await?;
    if lab.postrider.is_some() {
        let postrider = Postrider::start(lab, 1).await?;
        let base = lab.receiver.url("ok", 0);
        let tenants = Tenants {
            apps: 1,
            endpoints: 10,
            one_type_each: false,
            limited: true,
        };
        let target = postrider
            .target(&tenants, |number| format!("{base}/{number}"))
            .await?;
        in_turn(lab, &mut outcome, &[(&floor.target, load), (&target, load)]).await?;
        postrider.stop().await?;
    } else {
        in_turn(lab, &mut outcome, &[(&floor.target, load)]).await?;
    }
    floor.stop().await?;
    outcome.ratio("sustained / bare loop", (1, 0), |m| Some(m.sustained_per_s), None);
    outcome.ratio("burst / bare loop", (1, 0), |m| Some(m.delivered_per_s), None);
    outcome.ratio("broker's CPU / bare loop", (1, 0), |m| m.cpu_of("broker"), None);
    Ok(outcome)
}

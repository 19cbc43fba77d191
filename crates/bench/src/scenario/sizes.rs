//! Larger messages.

use anyhow::Result;

use super::{Outcome, in_turn};
use crate::lab::Lab;
use crate::load::Load;
use crate::subject::Tenants;
use crate::subject::floor::{Floor, Shape};
use crate::subject::postrider::Postrider;

pub(super) async fn run(lab: &mut Lab, name: &str, bytes: usize) -> Result<Outcome> {
    let about = format!("closed loop, {} KiB, one endpoint", bytes / 1_024);
    let mut outcome = Outcome::new(name, &about);
    let connections = if bytes > 100_000 { 16 } else { 64 };
    let load = Load {
        bytes,
        connections,
        ..Load::saturating(if lab.quick { 2.0 } else { 8.0 })
    };
    let floor = Floor::start(lab, Shape::BARE).await?;
    if lab.postrider.is_some() {
        let postrider = Postrider::start(lab, 1).await?;
        let base = lab.receiver.url("ok", 0);
        let target = postrider
            .target(&Tenants::ONE, |number| format!("{base}/{number}"))
            .await?;
        in_turn(lab, &mut outcome, &[(&floor.target, load), (&target, load)]).await?;
        postrider.stop().await?;
    } else {
        in_turn(lab, &mut outcome, &[(&floor.target, load)]).await?;
    }
    floor.stop().await?;
    outcome.ratio("sustained / bare loop", (1, 0), |m| Some(m.sustained_per_s), None);
    outcome.ratio("burst / bare loop", (1, 0), |m| Some(m.delivered_per_s), None);
    Ok(outcome)
}

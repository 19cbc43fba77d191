//! A second gateway and worker on the same two cores, added while the first ones run.

use anyhow::Result;

use super::{Aim, Outcome};
use crate::lab::Lab;
use crate::load::{Load, Measure, measure};
use crate::subject::Tenants;
use crate::subject::floor::Floor;
use crate::subject::postrider::Postrider;

const ENDPOINTS: u16 = 10;

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    let about = "64 producers, closed loop, 1 KiB, 10 endpoints: one gateway and worker, then a second of each is added";
    let mut outcome = Outcome::new("processes", about);
    for row in [
        "bare loop",
        "postrider, 1 + 1",
        "bare loop again",
        "postrider, 2 + 2",
    ] {
        outcome.subjects([row.to_owned()]);
    }
    let load = Load::saturating(if lab.quick { 2.5 } else { 10.0 });
    let floor = Floor::bare(lab, ENDPOINTS).await?;
    for _ in 0..lab.rounds {
        let mut postrider = Postrider::start(lab, 1).await?;
        let base = lab.receiver.url("ok", 0);
        let tenants = Tenants {
            apps: usize::from(ENDPOINTS),
            endpoints: 1,
            one_type_each: false,
            limited: true,
        };
        let made = tenants
            .make(&postrider.http, |number| format!("{base}/{number}"))
            .await?;
        for (index, rows) in outcome.rows.chunks_exact_mut(2).enumerate() {
            rows[0].rounds.push(measure(lab, &floor.target, &load).await?);
            if index > 0 {
                // Beside those that run: none is restarted.
                postrider.add(lab, "worker").await?;
                postrider.add(lab, "gateway").await?;
            }
            let target = postrider.target_of(&tenants, &made);
            rows[1].rounds.push(measure(lab, &target, &load).await?);
        }
        postrider.stop(lab).await?;
    }
    floor.stop().await?;
    let sustained = |measure: &Measure| Some(measure.sustained_per_s);
    outcome.ratio("sustained, 1 + 1 / bare loop", (1, 0), sustained, None);
    outcome.ratio("sustained, 2 + 2 / bare loop", (3, 2), sustained, None);
    outcome.compare("the same, 2 + 2 / 1 + 1", [3, 2], [1, 0], Some(Aim::AtLeast(0.9)));
    Ok(outcome)
}

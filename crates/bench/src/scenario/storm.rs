//! All endpoints fail for 30 seconds and then recover.
//!
//! The bare loop tries nothing again, so none of its endpoints fails: it stands for what the machine needs for that load.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::Outcome;
use crate::clock::{now_ns, seconds};
use crate::lab::Lab;
use crate::load::{Load, Measure, once};
use crate::subject::Tenants;
use crate::subject::floor::Floor;
use crate::subject::postrider::Postrider;

const FAILING: Duration = Duration::from_secs(30);
const ENDPOINTS: u16 = 100;
const PER_S: f64 = 500.0;
/// The second retry comes after 5 minutes and a jitter.
const RECOVERY_LIMIT: Duration = Duration::from_secs(420);

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    let about = "100 endpoints, 500/s for 30 s, in which all fail; from then until everything is delivered";
    let mut outcome = Outcome::new("storm", about);
    outcome.at_once = false;
    outcome.subjects(["bare loop, none fails", "postrider"].map(Into::into));
    let floor = Floor::bare(lab, ENDPOINTS).await?;
    let load = Load {
        quiet: RECOVERY_LIMIT,
        ..Load::steady(PER_S, FAILING.as_secs_f64())
    };
    let mut recoveries = Vec::new();
    for _ in 0..lab.rounds {
        lab.rest().await?;
        outcome.rows[0]
            .rounds
            .push(once(lab, &floor.target, &load).await?);
        let (measured, recovery_s) = storm(lab, &load).await?;
        outcome.rows[1].rounds.push(measured);
        recoveries.push(recovery_s);
    }
    floor.stop().await?;
    outcome.found("recovery to the last delivery, s", recoveries, None);
    Ok(outcome)
}

/// One storm on a system of its own; also the seconds from the end of the failures to the last delivery.
async fn storm(lab: &Lab, load: &Load) -> Result<(Measure, f64)> {
    let postrider = Postrider::start(lab, 1).await?;
    let base = lab.receiver.url("storm", 0);
    let tenants = Tenants {
        apps: usize::from(ENDPOINTS),
        endpoints: 1,
        one_type_each: false,
        limited: false,
    };
    let target = postrider
        .target(&tenants, |number| format!("{base}/{number}"))
        .await?;
    lab.rest().await?;
    lab.receiver.storm(true).await?;
    let recover = async {
        sleep(FAILING).await;
        lab.receiver.storm(false).await?;
        anyhow::Ok(now_ns())
    };
    let (measured, recovered_ns) = tokio::try_join!(once(lab, &target, load), recover)?;
    postrider.stop(lab).await?;
    let last_ns = measured
        .groups
        .first()
        .map_or(recovered_ns, |group| group.last_ns);
    Ok((measured, seconds(recovered_ns, last_ns)))
}

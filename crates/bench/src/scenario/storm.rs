//! All endpoints fail for 30 seconds and then recover.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::sleep;

use super::{Finding, Outcome, Row};
use crate::clock::{now_ns, seconds};
use crate::figures::Spread;
use crate::lab::Lab;
use crate::load::{Load, once};
use crate::subject::Tenants;
use crate::subject::postrider::Postrider;

const FAILING: Duration = Duration::from_secs(30);
/// The second retry comes after 5 minutes and a jitter.
const RECOVERY_LIMIT: Duration = Duration::from_secs(420);

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    ensure!(
        lab.postrider.is_some(),
        "the storm scenario needs the `postrider` binary"
    );
    let about = "100 endpoints, 500/s for 30 s, in which all fail; from then until everything is delivered";
    let mut outcome = Outcome::new("storm", about);
    let postrider = Postrider::start(lab, 1).await?;
    let base = lab.receiver.url("storm", 0);
    let tenants = Tenants {
        apps: 100,
        endpoints: 1,
        one_type_each: false,
        limited: false,
    };
    let target = postrider
        .target(&tenants, |number| format!("{base}/{number}"))
        .await?;
    let load = Load {
        quiet: RECOVERY_LIMIT,
        recorded: true,
        ..Load::steady(500.0, FAILING.as_secs_f64())
    };
    lab.receiver.storm(true).await?;
    let recover = async {
        sleep(FAILING).await;
        lab.receiver.storm(false).await?;
        anyhow::Ok(now_ns())
    };
    let (measured, recovered_ns) = tokio::try_join!(once(lab, &target, &load), recover)?;
    postrider.stop().await?;
    let last_ns = measured
        .groups
        .first()
        .map_or(recovered_ns, |group| group.last_ns);
    let spread = Spread::of([seconds(recovered_ns, last_ns)]);
    let finding = |spread| Finding {
        what: "recovery to the last delivery, s".into(),
        spread,
        aim: None,
    };
    outcome.findings.extend(spread.map(finding));
    outcome.rows.push(Row {
        subject: "postrider".into(),
        rounds: vec![measured],
    });
    Ok(outcome)
}

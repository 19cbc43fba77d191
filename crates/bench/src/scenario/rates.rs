//! As much as the machine can do, beside both floors: with one endpoint and with a thousand, with a fan-out, with larger
//! messages.

use anyhow::Result;

use super::{Aim, Outcome, in_turn};
use crate::lab::Lab;
use crate::load::{Load, Measure};
use crate::subject::Tenants;
use crate::subject::floor::Floors;
use crate::subject::postrider::Postrider;

/// From this payload on 16 producers instead of 64 keep the machine busy.
const LARGE: usize = 100_000;

pub(super) async fn one_endpoint(lab: &mut Lab) -> Result<Outcome> {
    let outcome = Outcome::new("saturation-1", "64 producers, closed loop, 1 KiB, one endpoint");
    saturation(lab, outcome, &Tenants::ONE).await
}

pub(super) async fn thousand_endpoints(lab: &mut Lab) -> Result<Outcome> {
    let about =
        "64 producers, closed loop, 1 KiB, 1,000 endpoints of 100 applications, each message to one of them";
    let tenants = Tenants {
        apps: 100,
        endpoints: 10,
        one_type_each: true,
        limited: true,
    };
    saturation(lab, Outcome::new("saturation-1000", about), &tenants).await
}

pub(super) async fn fan_out(lab: &mut Lab) -> Result<Outcome> {
    let about = "64 producers, closed loop, 1 KiB, each message to 10 endpoints; rates count deliveries";
    let mut outcome = Outcome::new("fan-out-10", about);
    let tenants = Tenants {
        apps: 1,
        endpoints: 10,
        one_type_each: false,
        limited: true,
    };
    let load = Load::saturating(if lab.quick { 1.5 } else { 10.0 });
    compare(lab, &mut outcome, &tenants, load, Aims::NONE).await?;
    Ok(outcome)
}

pub(super) async fn size(lab: &mut Lab, name: &str, bytes: usize) -> Result<Outcome> {
    let connections = if bytes > LARGE { 16 } else { 64 };
    let about = format!(
        "{connections} producers, closed loop, {} KiB, one endpoint",
        bytes / 1_024
    );
    let mut outcome = Outcome::new(name, &about);
    let load = Load {
        bytes,
        connections,
        ..Load::saturating(if lab.quick { 2.0 } else { 8.0 })
    };
    compare(lab, &mut outcome, &Tenants::ONE, load, Aims::NONE).await?;
    Ok(outcome)
}

async fn saturation(lab: &Lab, mut outcome: Outcome, tenants: &Tenants) -> Result<Outcome> {
    let load = Load::saturating(if lab.quick { 2.0 } else { 10.0 });
    let aims = Aims {
        sustained: Some(Aim::AtLeast(1.2)),
        burst: Some(Aim::AtLeast(1.5)),
        broker: Some(Aim::AtMost(0.2)),
    };
    compare(lab, &mut outcome, tenants, load, aims).await?;
    Ok(outcome)
}

struct Aims {
    sustained: Option<Aim>,
    burst: Option<Aim>,
    broker: Option<Aim>,
}

impl Aims {
    const NONE: Self = Self {
        sustained: None,
        burst: None,
        broker: None,
    };
}

/// The floors and Postrider in turn under the same load.
async fn compare(lab: &Lab, outcome: &mut Outcome, tenants: &Tenants, load: Load, aims: Aims) -> Result<()> {
    let floors = Floors::start(lab, tenants.count(), tenants.fan_out()).await?;
    let mut targets = vec![(&floors.bare.target, load), (&floors.batched.target, load)];
    if lab.postrider.is_some() {
        let postrider = Postrider::start(lab, 1).await?;
        let base = lab.receiver.url("ok", 0);
        let target = postrider
            .target(tenants, |number| format!("{base}/{number}"))
            .await?;
        targets.push((&target, load));
        in_turn(lab, outcome, &targets).await?;
        postrider.stop(lab).await?;
    } else {
        in_turn(lab, outcome, &targets).await?;
    }
    floors.stop().await?;
    let sustained = |measure: &Measure| Some(measure.sustained_per_s);
    let burst = |measure: &Measure| Some(measure.delivered_per_s);
    let broker = |measure: &Measure| measure.cpu_of("broker");
    outcome.ratio("bare loop × 32, rate / bare loop", (1, 0), burst, None);
    outcome.ratio("sustained / bare loop", (2, 0), sustained, aims.sustained);
    outcome.ratio("burst / bare loop", (2, 0), burst, aims.burst);
    outcome.ratio("broker's CPU / bare loop", (2, 0), broker, aims.broker);
    outcome.ratio("all CPU / bare loop", (2, 0), |m| Some(m.cpu_total()), None);
    Ok(())
}

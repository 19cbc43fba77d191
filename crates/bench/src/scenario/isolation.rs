//! Healthy endpoints beside hung ones.
//!
//! The last measurement at the fixed rate is like the first, without hung ones: what differs between these two is the
//! machine's noise. The rate leaves nearly half of two cores free without hung endpoints, since near saturation the noise is
//! larger than what is looked for. The bare loop stands for what the machine needs for that rate; it has no isolation, so
//! nothing hangs for it.

use std::time::Duration;

use anyhow::Result;

use super::{Aim, Outcome};
use crate::clock::seconds;
use crate::figures::figure;
use crate::generate::plan::Route;
use crate::lab::Lab;
use crate::load::{Load, Measure, measure, once};
use crate::subject::floor::Floor;
use crate::subject::postrider::Postrider;
use crate::subject::{Target, Tenants};

const ENDPOINTS: u16 = 100;
/// How long the healthy endpoints have messages before it is measured: a first second is slower than all others, with
/// hung endpoints or without.
const WARM_UP_S: f64 = 3.0;
/// Messages a second to each endpoint.
const EACH_PER_S: f64 = 5.0;
/// What hangs, takes 15 s for a request.
const CASES: [Case; 6] = [
    Case::new("none hung", 0, false),
    Case::new("1 hung", 1, false),
    Case::new("20 hung", 20, false),
    Case::new("none hung again", 0, false),
    Case::new("none hung, saturated", 0, true),
    Case::new("20 hung, saturated", 20, true),
];

struct Case {
    name: &'static str,
    hung: u16,
    /// As much as the machine can do instead of the fixed rate.
    saturated: bool,
}

impl Case {
    const fn new(name: &'static str, hung: u16, saturated: bool) -> Self {
        Self {
            name,
            hung,
            saturated,
        }
    }

    fn healthy(&self) -> f64 {
        f64::from(ENDPOINTS - self.hung)
    }

    fn load(&self, lab: &Lab) -> Load {
        let load = if self.saturated {
            Load::saturating(if lab.quick { 2.5 } else { 15.0 })
        } else {
            let all_per_s = EACH_PER_S * f64::from(ENDPOINTS);
            Load {
                connections: 128,
                ..Load::steady(all_per_s, if lab.quick { 5.0 } else { 30.0 })
            }
        };
        Load {
            quiet: Duration::from_secs(3),
            recorded: false,
            ..load
        }
    }
}

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    let about = "100 endpoints at 5/s each, of which none, 1, 20 and again none hang for 15 s, then saturated; figures of the healthy ones";
    let mut outcome = Outcome::new("isolation", about);
    // What hangs does not count as delivered.
    outcome.all_due = false;
    outcome.at_once = false;
    let names = CASES.iter().map(|case| format!("postrider, {}", case.name));
    outcome.subjects(["bare loop, none hung".to_owned()].into_iter().chain(names));
    let floor = Floor::bare(lab, ENDPOINTS).await?;
    for _ in 0..lab.rounds {
        let measured = measure(lab, &floor.target, &CASES[0].load(lab)).await?;
        outcome.rows[0].rounds.push(measured);
        for (case, row) in CASES.iter().zip(&mut outcome.rows[1..]) {
            row.rounds.push(alone(lab, case).await?);
        }
    }
    floor.stop().await?;
    findings(&mut outcome);
    Ok(outcome)
}

/// On a system of its own: what hangs would reach into the next measurement.
async fn alone(lab: &Lab, case: &Case) -> Result<Measure> {
    let postrider = Postrider::start(lab, 1).await?;
    let (good, bad) = (lab.receiver.url("ok", 0), lab.receiver.url("hang", 1));
    let tenants = Tenants {
        apps: usize::from(ENDPOINTS),
        endpoints: 1,
        one_type_each: false,
        limited: false,
    };
    let url = |number: usize| {
        let hangs = number >= usize::from(ENDPOINTS - case.hung);
        format!("{}/{number}", if hangs { &bad } else { &good })
    };
    let target = postrider.target(&tenants, url).await?;
    let load = case.load(lab);
    let warm_up = Load {
        seconds: WARM_UP_S,
        ..load
    };
    once(lab, &healthy(&target, case), &warm_up).await?;
    lab.rest().await?;
    let measured = once(lab, &target, &load).await?;
    postrider.stop(lab).await?;
    Ok(measured)
}

/// The target without what hangs: the last applications.
fn healthy(target: &Target, case: &Case) -> Target {
    let mut healthy = target.clone();
    if let Route::Postrider { apps, .. } = &mut healthy.route {
        apps.truncate(usize::from(ENDPOINTS - case.hung));
    }
    healthy
}

/// The first case of its kind is what the others are compared with; row 0 is the bare loop's.
fn findings(outcome: &mut Outcome) {
    let p50 = |measure: &Measure| Some(measure.end_to_end().p50_ms);
    let p99 = |measure: &Measure| Some(measure.end_to_end().p99_ms);
    for (case, row) in CASES.iter().zip(1..) {
        if case.hung > 0 {
            let share = |measure: &Measure| healthy_share(measure, case);
            let came = format!("healthy deliveries that came, {}", case.name);
            outcome.finding(&came, row, share, Some(Aim::AtLeast(0.999)));
        }
        if !case.saturated && row > 1 {
            let aim = (case.hung > 0).then_some(Aim::AtMost(1.15));
            outcome.ratio(&format!("p50, {} / none", case.name), (row, 1), p50, aim);
            outcome.ratio(&format!("p99, {} / none", case.name), (row, 1), p99, aim);
        }
    }
    let rate = |row: usize| move |measure: &Measure| healthy_rate(measure, &CASES[row - 1]);
    outcome.ratio_of(
        "deliveries/s to each healthy endpoint, saturated, 20 hung / none",
        (6, rate(6)),
        (5, rate(5)),
        Some(Aim::AtLeast(0.87)),
    );
}

/// Of the accepted messages to healthy endpoints, the part that arrived while it was measured.
fn healthy_share(measure: &Measure, case: &Case) -> Option<f64> {
    let due = figure(measure.accepted) * case.healthy() / f64::from(ENDPOINTS);
    Some(figure(measure.groups.first()?.delivered) / due)
}

/// Deliveries a second to each healthy endpoint, until the last of them.
fn healthy_rate(measure: &Measure, case: &Case) -> Option<f64> {
    let healthy = measure.groups.first()?;
    Some(figure(healthy.delivered) / seconds(measure.started_ns, healthy.last_ns) / case.healthy())
}

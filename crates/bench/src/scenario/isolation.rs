//! Healthy endpoints beside hung ones.
//!
//! The last measurement is like the first, without hung ones: what differs between these two is the machine's noise. The
//! rate leaves nearly half of two cores free without hung endpoints, since near saturation the noise is larger than what is
//! looked for.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Aim, Outcome, Row};
use crate::lab::Lab;
use crate::load::{Load, Measure, once};
use crate::subject::Tenants;
use crate::subject::postrider::Postrider;

const ENDPOINTS: usize = 100;
/// Hung endpoints of [`ENDPOINTS`], for which a request takes 15 s.
const HUNG: [usize; 4] = [0, 1, 20, 0];
/// Messages a second to each endpoint.
const EACH_PER_S: f64 = 5.0;

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    ensure!(
        lab.postrider.is_some(),
        "the isolation scenario needs the `postrider` binary"
    );
    let about = "100 endpoints at 5/s each, of which none, 1, 20 and again none hang for 15 s; figures of the healthy ones";
    let mut outcome = Outcome::new("isolation", about);
    let rows = HUNG.iter().enumerate().map(|(row, hung)| Row {
        subject: format!("postrider, {}", name(row, *hung)),
        rounds: Vec::new(),
    });
    outcome.rows = rows.collect();
    let load = Load {
        connections: 128,
        quiet: Duration::from_secs(3),
        recorded: false,
        ..Load::steady(EACH_PER_S * 100.0, if lab.quick { 5.0 } else { 30.0 })
    };
    for _ in 0..lab.rounds {
        for (row, hung) in HUNG.into_iter().enumerate() {
            // Each on a system of its own: what hangs would reach into the next round.
            let postrider = Postrider::start(lab, 1).await?;
            let (good, bad) = (lab.receiver.url("ok", 0), lab.receiver.url("hang", 1));
            let tenants = Tenants {
                apps: ENDPOINTS,
                endpoints: 1,
                one_type_each: false,
                limited: false,
            };
            let url = |number: usize| {
                let base = if number >= ENDPOINTS - hung { &bad } else { &good };
                format!("{base}/{number}")
            };
            let target = postrider.target(&tenants, url).await?;
            lab.rest().await?;
            outcome.rows[row].rounds.push(once(lab, &target, &load).await?);
            postrider.stop().await?;
        }
    }
    let p50 = |measure: &Measure| Some(measure.end_to_end().p50_ms);
    let p99 = |measure: &Measure| Some(measure.end_to_end().p99_ms);
    for (row, hung) in HUNG.into_iter().enumerate().skip(1) {
        let name = name(row, hung);
        let aim = (hung > 0).then_some(Aim::AtMost(1.15));
        outcome.ratio(&format!("p50, {name} / none"), (row, 0), p50, aim);
        outcome.ratio(&format!("p99, {name} / none"), (row, 0), p99, aim);
        let share = |measure: &Measure| healthy_share(measure, hung);
        let came = format!("healthy deliveries that came, {name}");
        outcome.finding(&came, row, share, Some(Aim::AtLeast(0.999)));
    }
    Ok(outcome)
}

fn name(row: usize, hung: usize) -> String {
    match (row, hung) {
        (0, 0) => "none hung".to_owned(),
        (_, 0) => "none hung again".to_owned(),
        (_, hung) => format!("{hung} hung"),
    }
}

/// Of the accepted messages to healthy endpoints, the part that arrived while it was measured.
fn healthy_share(measure: &Measure, hung: usize) -> Option<f64> {
    use crate::figures::figure;
    let healthy = figure(u64::try_from(ENDPOINTS - hung).ok()?) / figure(u64::try_from(ENDPOINTS).ok()?);
    Some(figure(measure.groups.first()?.delivered) / (figure(measure.accepted) * healthy))
}

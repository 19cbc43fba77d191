//! The rate against what is already there: messages on record, endpoints configured. It must not bend.

use anyhow::{Result, ensure};

use super::{Aim, Outcome, Row, measure};
use crate::lab::Lab;
use crate::load::{Load, once};
use crate::subject::Tenants;
use crate::subject::postrider::{Layout, Postrider};

/// Messages on record.
const RECORDED: [u64; 3] = [10_000, 100_000, 1_000_000];
/// Endpoints configured, in applications of ten.
const ENDPOINTS: [usize; 3] = [10, 1_000, 100_000];

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    ensure!(
        lab.postrider.is_some(),
        "the growth scenario needs the `postrider` binary"
    );
    let about = "64 producers, closed loop, 1 KiB: with 10⁴, 10⁵ and 10⁶ messages on record, then with 10, 10³ and 10⁵ endpoints";
    let mut outcome = Outcome::new("growth", about);
    let load = Load::saturating(10.0);
    let postrider = Postrider::start(lab, Layout::PLAIN).await?;
    let base = lab.receiver.url("ok", 0);
    let url = |number: usize| format!("{base}/{number}");
    let target = postrider.target(&Tenants::ONE, url).await?;
    let mut recorded = 0;
    for wanted in RECORDED {
        while recorded < wanted {
            recorded += once(
                lab,
                &target,
                &Load::saturating(if wanted > 10_000 { 10.0 } else { 0.7 }),
            )
            .await?
            .accepted;
        }
        let mut row = Row {
            subject: format!("postrider, {wanted} recorded"),
            rounds: Vec::new(),
        };
        for _ in 0..lab.rounds {
            row.rounds.push(measure(lab, &target, &load).await?);
        }
        recorded += row.rounds.iter().map(|round| round.accepted).sum::<u64>();
        outcome.rows.push(row);
    }
    let mut configured = 0;
    for wanted in ENDPOINTS {
        let tenants = Tenants {
            apps: (wanted - configured) / 10,
            endpoints: 10,
            one_type_each: true,
        };
        let target = postrider.target(&tenants, url).await?;
        configured = wanted;
        let mut row = Row {
            subject: format!("postrider, {wanted} endpoints"),
            rounds: Vec::new(),
        };
        for _ in 0..lab.rounds {
            row.rounds.push(measure(lab, &target, &load).await?);
        }
        outcome.rows.push(row);
    }
    postrider.stop().await?;
    let rate = |measure: &crate::load::Measure| Some(measure.sustained_per_s);
    outcome.ratio(
        "sustained, 10⁶ / 10⁴ recorded",
        (2, 0),
        rate,
        Some(Aim::AtLeast(0.9)),
    );
    outcome.ratio(
        "sustained, 10⁵ / 10 endpoints",
        (5, 3),
        rate,
        Some(Aim::AtLeast(0.9)),
    );
    Ok(outcome)
}

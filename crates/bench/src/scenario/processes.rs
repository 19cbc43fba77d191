//! Two gateways and two workers on the machine of one.

use anyhow::{Result, ensure};

use super::{Aim, Outcome, Row};
use crate::lab::Lab;
use crate::load::{Load, measure};
use crate::subject::Tenants;
use crate::subject::postrider::Postrider;

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    ensure!(
        lab.postrider.is_some(),
        "the processes scenario needs the `postrider` binary"
    );
    let about = "64 producers, closed loop, 1 KiB, 10 endpoints: one gateway and worker, then a second of each is added";
    let mut outcome = Outcome::new("processes", about);
    let names = ["postrider, 1 + 1", "postrider, 2 + 2"];
    outcome.rows = names
        .map(|name| Row {
            subject: name.into(),
            rounds: Vec::new(),
        })
        .into();
    let load = Load::saturating(if lab.quick { 2.5 } else { 10.0 });
    for _ in 0..lab.rounds {
        let mut postrider = Postrider::start(lab, 1).await?;
        let base = lab.receiver.url("ok", 0);
        let tenants = Tenants {
            apps: 10,
            endpoints: 1,
            one_type_each: false,
            limited: true,
        };
        let made = tenants
            .make(&postrider.http, |number| format!("{base}/{number}"))
            .await?;
        for (index, row) in outcome.rows.iter_mut().enumerate() {
            if index > 0 {
                // Beside those that run: none is restarted.
                postrider.add(lab, "worker").await?;
                postrider.add(lab, "gateway").await?;
            }
            let target = postrider.target_of(&tenants, &made);
            row.rounds.push(measure(lab, &target, &load).await?);
        }
        postrider.stop().await?;
    }
    outcome.ratio(
        "sustained, 2 + 2 / 1 + 1",
        (1, 0),
        |m| Some(m.sustained_per_s),
        Some(Aim::AtLeast(0.9)),
    );
    Ok(outcome)
}

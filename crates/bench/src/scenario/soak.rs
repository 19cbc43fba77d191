//! Ten minutes at saturation: memory must stay flat.

use anyhow::{Result, ensure};

use super::{Aim, Finding, Outcome, ROLES, Row};
use crate::figures::Spread;
use crate::lab::Lab;
use crate::load::{Load, once};
use crate::subject::Tenants;
use crate::subject::postrider::Postrider;

/// Pieces of a minute; memory at the peak of the last is compared with that of the second.
const MINUTES: usize = 10;

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    ensure!(
        lab.postrider.is_some(),
        "the soak scenario needs the `postrider` binary"
    );
    let mut outcome = Outcome::new(
        "soak",
        "64 producers, closed loop, 1 KiB, 100 endpoints, ten minutes",
    );
    let postrider = Postrider::start(lab, 1).await?;
    let base = lab.receiver.url("ok", 0);
    let tenants = Tenants {
        apps: 100,
        endpoints: 1,
        one_type_each: false,
        limited: true,
    };
    let target = postrider
        .target(&tenants, |number| format!("{base}/{number}"))
        .await?;
    let mut row = Row {
        subject: "postrider".into(),
        rounds: Vec::new(),
    };
    for _ in 0..MINUTES {
        row.rounds
            .push(once(lab, &target, &Load::saturating(60.0)).await?);
    }
    postrider.stop().await?;
    for role in ROLES {
        let peak = |minute: usize| row.rounds.get(minute)?.rss_peak_mib.get(role).copied();
        let grown = peak(1).zip(peak(MINUTES - 1)).map(|(early, late)| late / early);
        let finding = |spread| Finding {
            what: format!("{role}'s memory, minute {MINUTES} / minute 2"),
            spread,
            aim: Some(Aim::AtMost(1.1)),
        };
        outcome
            .findings
            .extend(grown.and_then(|grown| Spread::of([grown])).map(finding));
    }
    outcome.rows.push(row);
    Ok(outcome)
}

//! Draining what waited: the workers are away while messages are accepted, and come back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::timeout;

use super::{Finding, Outcome};
use crate::clock::{now_ns, seconds};
use crate::figures::{Spread, figure};
use crate::lab::Lab;
use crate::load::{Load, delivered, start_generator};
use crate::subject::Tenants;
use crate::subject::postrider::Postrider;

const FAN_OUT: usize = 10;
/// Deliveries that wait.
const DELIVERIES: u64 = 1_000_000;
const DELIVERIES_QUICK: u64 = 50_000;
/// How long nothing may arrive before what is missing counts as missing.
const QUIET: Duration = Duration::from_secs(60);
/// How long they may take in all.
const DRAIN_LIMIT: Duration = Duration::from_secs(600);

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    ensure!(
        lab.postrider.is_some(),
        "the backlog scenario needs the `postrider` binary"
    );
    let wanted = if lab.quick { DELIVERIES_QUICK } else { DELIVERIES };
    let about = format!(
        "{wanted} deliveries (fan-out 10, 1 KiB) are accepted with no worker; then one worker starts"
    );
    let mut outcome = Outcome::new("backlog", &about);
    let mut postrider = Postrider::start(lab, 0).await?;
    let base = lab.receiver.url("ok", 0);
    let tenants = Tenants {
        apps: 1,
        endpoints: FAN_OUT,
        one_type_each: false,
        limited: false,
    };
    let target = postrider
        .target(&tenants, |number| format!("{base}/{number}"))
        .await?;
    lab.receiver.reset(target.fan_out).await?;
    let mut accepted = 0;
    let filling = now_ns();
    while accepted * target.fan_out < wanted {
        let load = Load::saturating(5.0);
        let generator = start_generator(lab, &target, &load, accepted)?;
        let output = generator.output(Duration::from_secs(60)).await?;
        let generated: crate::figures::Generated = serde_json::from_str(output.trim())?;
        ensure!(
            generated.accepted > 0,
            "nothing is accepted: {:?}",
            generated.first_refusal
        );
        accepted += generated.accepted;
    }
    let filled_s = seconds(filling, now_ns());
    let started = now_ns();
    postrider.add(lab, "worker").await?;
    let came = timeout(DRAIN_LIMIT, delivered(lab, accepted * target.fan_out, QUIET))
        .await
        .with_context(|| format!("the backlog is not drained within {DRAIN_LIMIT:?}"))??;
    let last_ns = lab
        .receiver
        .counts()
        .await?
        .iter()
        .map(|group| group.last_ns)
        .max()
        .unwrap_or_default();
    postrider.stop().await?;
    ensure!(
        came >= accepted * target.fan_out,
        "{came} of {} deliveries came",
        accepted * target.fan_out
    );
    let figures = [
        (
            "deliveries accepted without a worker, per s",
            figure(accepted * target.fan_out) / filled_s,
        ),
        (
            "deliveries drained, per s",
            figure(came) / seconds(started, last_ns),
        ),
    ];
    for (what, value) in figures {
        let spread = Spread::of([value]);
        outcome.findings.extend(spread.map(|spread| Finding {
            what: what.into(),
            spread,
            aim: None,
        }));
    }
    Ok(outcome)
}

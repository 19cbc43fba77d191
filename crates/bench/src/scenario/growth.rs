//! The rate against what is already there: messages on record, endpoints configured. It must not bend, and memory must stay
//! within its limits.

use anyhow::{Result, ensure};

use super::{Aim, Finding, Outcome, ROLES, Row, measure};
use crate::figures::Spread;
use crate::lab::Lab;
use crate::load::{Load, Measure, once};
use crate::subject::postrider::Postrider;
use crate::subject::{Target, Tenants};
use crate::usage;

/// Messages on record.
const RECORDED: [u64; 3] = [10_000, 100_000, 1_000_000];
/// Endpoints configured, in applications of ten.
const ENDPOINTS: [usize; 3] = [10, 1_000, 100_000];
/// How long it may take to put messages on record before a measurement.
const FILL_S: f64 = 600.0;
/// The gateway's large buffers by default: 256 MiB of cached configuration, as much of bodies. The worker's: 256 MiB of frames,
/// and 200,000 endpoints and 100,000 targets cached, for which as much is allowed.
const MEMORY_MAX_MIB: f64 = 512.0;

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    ensure!(
        lab.postrider.is_some(),
        "the growth scenario needs the `postrider` binary"
    );
    let about = "64 producers, closed loop, 1 KiB: with 10⁴, 10⁵ and 10⁶ messages on record, then with 10, 10³ and 10⁵ endpoints";
    let mut outcome = Outcome::new("growth", about);
    let load = Load::saturating(10.0);
    let postrider = Postrider::start(lab, 1).await?;
    let base = lab.receiver.url("ok", 0);
    let url = |number: usize| format!("{base}/{number}");
    let target = postrider.target(&Tenants::ONE, url).await?;
    let mut recorded = 0;
    for wanted in RECORDED {
        while recorded < wanted {
            let missing = Load {
                messages: Some(wanted - recorded),
                ..Load::saturating(FILL_S)
            };
            recorded += once(lab, &target, &missing).await?.accepted;
        }
        let row = rounds(lab, &target, &load, format!("postrider, {wanted} recorded")).await?;
        recorded += row.rounds.iter().map(|round| round.accepted).sum::<u64>();
        outcome.rows.push(row);
    }
    let mut configured = 0;
    for wanted in ENDPOINTS {
        let tenants = Tenants {
            apps: (wanted - configured) / 10,
            endpoints: 10,
            one_type_each: true,
            limited: true,
        };
        let target = postrider.target(&tenants, url).await?;
        configured = wanted;
        // One to each endpoint, so that its configuration is cached and its target is made.
        let first = Load {
            messages: Some(u64::try_from(tenants.apps * tenants.endpoints)?),
            ..Load::saturating(FILL_S)
        };
        once(lab, &target, &first).await?;
        outcome
            .rows
            .push(rounds(lab, &target, &load, format!("postrider, {wanted} endpoints")).await?);
    }
    lab.rest().await?;
    let at_rest = usage::children(&lab.names.get())?;
    postrider.stop().await?;
    let rate = |measure: &Measure| Some(measure.sustained_per_s);
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
    memory(&mut outcome, &at_rest);
    Ok(outcome)
}

async fn rounds(lab: &Lab, target: &Target, load: &Load, subject: String) -> Result<Row> {
    let mut rounds = Vec::new();
    for _ in 0..lab.rounds {
        rounds.push(measure(lab, target, load).await?);
    }
    Ok(Row { subject, rounds })
}

/// What each role holds with all endpoints configured: at the peak of the load on them, and at rest after it.
fn memory(outcome: &mut Outcome, at_rest: &usage::Table) {
    for role in ROLES {
        // The ledger caches no configuration.
        let aim = (role != "ledger").then_some(Aim::AtMost(MEMORY_MAX_MIB));
        let what = |when: &str| format!("{role}'s memory with 10⁵ endpoints, {when}, MiB");
        let peak = |measure: &Measure| measure.rss_peak_mib.get(role).copied();
        outcome.finding(&what("peak"), RECORDED.len() + ENDPOINTS.len() - 1, peak, aim);
        let spread = Spread::of(at_rest.get(role).map(|usage| usage.rss_mib));
        outcome.findings.extend(spread.map(|spread| Finding {
            what: what("at rest"),
            spread,
            aim,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_memory_at_rest_misses_the_aim() {
        let used = |rss_mib| usage::Usage { cpu_s: 1.0, rss_mib };
        let at_rest = [
            ("gateway", used(600.0)),
            ("worker", used(100.0)),
            ("ledger", used(50.0)),
        ];
        let at_rest = at_rest.map(|(role, usage)| (role.to_owned(), usage)).into();
        let mut outcome = Outcome::new("growth", "");
        memory(&mut outcome, &at_rest);
        let met = |finding: &Finding| finding.aim.map(|aim| aim.is_met(finding.spread.median));
        let verdicts: Vec<_> = outcome.findings.iter().map(met).collect();
        assert_eq!(verdicts, [Some(false), Some(true), None]);
    }
}

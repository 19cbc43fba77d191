//! The rate against what is already there: messages on record, endpoints configured. It must not bend, and memory must stay
//! within its limits.
//!
//! Each size has a system of its own in each round, so that sizes take turns and nothing of one is left for the next. What
//! is measured is added to what was there. The bare loop is measured beside each size, and what sizes are compared by is the
//! ratio to it: minutes of filling, or of anything else, slow some machines down.

use anyhow::{Result, ensure};

use super::{Aim, Outcome, ROLES};
use crate::lab::Lab;
use crate::load::{Load, Measure, measure, once};
use crate::subject::floor::Floor;
use crate::subject::postrider::Postrider;
use crate::subject::{Target, Tenants};
use crate::usage;

/// Messages on record, and endpoints configured (in applications of ten). A million and a quarter: a message leaves two keys in
/// Redis, and with some two million it doubles its table, which takes it twice its usual time for the next quarter of a minute. That
/// comes once for as many keys again, so no ten seconds of it tell what a large table costs.
const SIZES: [Size; 6] = [
    Size::new("10⁴ recorded", 10_000, 1),
    Size::new("10⁵ recorded", 100_000, 1),
    Size::new("1.25·10⁶ recorded", 1_250_000, 1),
    Size::new("10 endpoints", 10, 10),
    Size::new("10³ endpoints", 1_000, 1_000),
    Size::new("10⁵ endpoints", 100_000, 100_000),
];
/// How long it may take to put messages on record before a measurement.
const FILL_S: f64 = 600.0;
/// Fewer messages than these are no warm-up.
const WARM_UP: u64 = 10_000;
/// The gateway's large buffers by default: 256 MiB of cached configuration, as much of bodies. The worker's: 256 MiB of frames,
/// and 200,000 endpoints and 100,000 targets cached, for which as much is allowed.
const MEMORY_MAX_MIB: f64 = 512.0;

struct Size {
    name: &'static str,
    /// Messages sent before it is measured, to each endpoint as many.
    before: u64,
    endpoints: usize,
}

impl Size {
    const fn new(name: &'static str, before: u64, endpoints: usize) -> Self {
        Self {
            name,
            before,
            endpoints,
        }
    }

    fn tenants(&self) -> Tenants {
        let of_an_app = self.endpoints.min(10);
        Tenants {
            apps: self.endpoints / of_an_app,
            endpoints: of_an_app,
            one_type_each: true,
            limited: true,
        }
    }
}

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    let about = "64 producers, closed loop, 1 KiB: with 10⁴, 10⁵ and 1.25·10⁶ messages on record, then with 10, 10³ and 10⁵ endpoints";
    let mut outcome = Outcome::new("growth", about);
    for size in &SIZES {
        outcome.subjects(["bare loop", "postrider"].map(|subject| format!("{subject}, {}", size.name)));
    }
    let floor = Floor::bare(lab, 1).await?;
    let load = Load::saturating(if lab.quick { 2.5 } else { 10.0 });
    let mut at_rest = Vec::new();
    for _ in 0..lab.rounds {
        for (size, rows) in SIZES.iter().zip(outcome.rows.chunks_exact_mut(2)) {
            let (measured, after) = round(lab, size, &floor, &load).await?;
            for (row, measured) in rows.iter_mut().zip(measured) {
                row.rounds.push(measured);
            }
            if size.endpoints == SIZES[SIZES.len() - 1].endpoints {
                at_rest.push(after);
            }
        }
    }
    floor.stop().await?;
    rates(&mut outcome);
    memory(&mut outcome, &at_rest);
    Ok(outcome)
}

/// The bare loop and a system of this size under load, and what its processes hold when they rest after it.
async fn round(lab: &Lab, size: &Size, floor: &Floor, load: &Load) -> Result<([Measure; 2], usage::Table)> {
    let postrider = Postrider::start(lab, 1).await?;
    let base = lab.receiver.url("ok", 0);
    let target = postrider
        .target(&size.tenants(), |number| format!("{base}/{number}"))
        .await?;
    // With as many endpoints: one to each, so that its configuration is cached and its target is made.
    fill(lab, &target, size.before).await?;
    if size.before < WARM_UP {
        fill(lab, &target, WARM_UP).await?;
    }
    // What was put on record is the past: its pages are not to be written while something is measured.
    lab.services.postgres.checkpoint().await?;
    let bare = measure(lab, &floor.target, load).await?;
    let measured = measure(lab, &target, load).await?;
    lab.rest().await?;
    let at_rest = usage::children(&lab.names.get())?;
    postrider.stop(lab).await?;
    Ok(([bare, measured], at_rest))
}

async fn fill(lab: &Lab, target: &Target, messages: u64) -> Result<()> {
    let load = Load {
        messages: Some(messages),
        ..Load::saturating(FILL_S)
    };
    let filled = once(lab, target, &load).await?;
    ensure!(
        filled.accepted == messages,
        "{} of {messages} messages were accepted: {:?}",
        filled.accepted,
        filled.first_refusal
    );
    Ok(())
}

/// Each size against the bare loop beside it, and the largest against the smallest of its kind.
fn rates(outcome: &mut Outcome) {
    let sustained = |measure: &Measure| Some(measure.sustained_per_s);
    for (place, size) in SIZES.iter().enumerate() {
        let what = format!("sustained / bare loop, {}", size.name);
        outcome.ratio(&what, (place * 2 + 1, place * 2), sustained, None);
    }
    for ([large, small], is_largest) in [([1, 0], false), ([2, 0], true), ([4, 3], false), ([5, 3], true)] {
        let sizes = format!("{} / {}", SIZES[large].name, SIZES[small].name);
        let rows = |place: usize| [place * 2 + 1, place * 2];
        let aim = is_largest.then_some(Aim::AtLeast(0.9));
        outcome.compare(&format!("the same, {sizes}"), rows(large), rows(small), aim);
        let what = format!("sustained alone, {sizes}");
        outcome.ratio(&what, (rows(large)[0], rows(small)[0]), sustained, None);
    }
}

/// What each role holds with all endpoints configured: at the peak of the load on them, and at rest after it.
fn memory(outcome: &mut Outcome, at_rest: &[usage::Table]) {
    for role in ROLES {
        // The ledger caches no configuration.
        let aim = (role != "ledger").then_some(Aim::AtMost(MEMORY_MAX_MIB));
        let what = |when: &str| format!("{role}'s memory with 10⁵ endpoints, {when}, MiB");
        let peak = |measure: &Measure| measure.rss_peak_mib.get(role).copied();
        outcome.finding(&what("peak"), SIZES.len() * 2 - 1, peak, aim);
        let held = at_rest
            .iter()
            .filter_map(|table| table.get(role))
            .map(|usage| usage.rss_mib);
        outcome.found(&what("at rest"), held, aim);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Finding;

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
        memory(&mut outcome, &[at_rest]);
        let met = |finding: &Finding| finding.aim.map(|aim| aim.is_met(finding.spread.median));
        let verdicts: Vec<_> = outcome.findings.iter().map(met).collect();
        assert_eq!(verdicts, [Some(false), Some(true), None]);
    }
}

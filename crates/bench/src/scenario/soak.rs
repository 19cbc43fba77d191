//! Ten minutes at saturation without a pause: memory must stay flat. Once, after the bare loop.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

use super::{Aim, Outcome, ROLES};
use crate::lab::Lab;
use crate::load::{Load, Measure, Peaks, measure, once};
use crate::subject::Tenants;
use crate::subject::floor::Floor;
use crate::subject::postrider::Postrider;

const ENDPOINTS: u16 = 100;
/// Memory at the peak of the last minute is compared with that of the second.
const MINUTES: usize = 10;
const MINUTE: Duration = Duration::from_secs(60);
const MINUTE_QUICK: Duration = Duration::from_secs(3);
/// Services: Redis keeps each idempotency key for a day, so its memory grows; the others' caches fill.
const SERVICES: [&str; 3] = ["broker", "redis", "postgres"];

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    let minute = if lab.quick { MINUTE_QUICK } else { MINUTE };
    let about =
        "64 producers, closed loop, 1 KiB, 100 endpoints, ten minutes (once), after the bare loop for one";
    let mut outcome = Outcome::new("soak", about);
    outcome.subjects(["bare loop", "postrider"].map(Into::into));
    let floor = Floor::bare(lab, ENDPOINTS).await?;
    let load = Load::saturating(minute.as_secs_f64());
    outcome.rows[0]
        .rounds
        .push(measure(lab, &floor.target, &load).await?);
    floor.stop().await?;

    let postrider = Postrider::start(lab, 1).await?;
    let base = lab.receiver.url("ok", 0);
    let tenants = Tenants {
        apps: usize::from(ENDPOINTS),
        endpoints: 1,
        one_type_each: false,
        limited: true,
    };
    let target = postrider
        .target(&tenants, |number| format!("{base}/{number}"))
        .await?;
    lab.rest().await?;
    let load = Load::saturating((minute * u32::try_from(MINUTES)?).as_secs_f64());
    let (measured, minutes) = by_minute(lab, minute, once(lab, &target, &load)).await?;
    postrider.stop(lab).await?;
    outcome.rows[1].rounds.push(measured);
    let sustained = |measure: &Measure| Some(measure.sustained_per_s);
    outcome.ratio("sustained / bare loop", (1, 0), sustained, None);
    let (second, last) = (&minutes[1], &minutes[MINUTES - 1]);
    for name in ROLES.into_iter().chain(SERVICES) {
        let aim = ROLES.contains(&name).then_some(Aim::AtMost(1.1));
        let grown = last
            .of(name)
            .zip(second.of(name))
            .map(|(late, early)| late / early);
        outcome.found(&format!("{name}'s memory, minute 10 / minute 2"), grown, aim);
    }
    Ok(outcome)
}

/// Does the work; the most memory of each of its first minutes.
async fn by_minute(
    lab: &Lab,
    minute: Duration,
    work: impl Future<Output = Result<Measure>>,
) -> Result<(Measure, Vec<Peaks>)> {
    let mut work = std::pin::pin!(work);
    let mut minutes = Vec::new();
    let mut peaks = Peaks::default();
    let mut ends = Instant::now() + minute;
    loop {
        let done = peaks.watch_until(lab, ends, work.as_mut()).await?;
        ends += minute;
        minutes.push(std::mem::take(&mut peaks));
        if let Some(measured) = done {
            let most = minutes.len();
            let minutes = (most >= MINUTES).then_some(minutes);
            let minutes = minutes.with_context(|| format!("it ended after {most} minutes"))?;
            return Ok((measured, minutes));
        }
    }
}

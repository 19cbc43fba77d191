//! Thousands of TLS hosts that answer in 200 ms, with 1, 2 and 4 workers: bound by latency, not by the processor.

use std::time::Duration;

use anyhow::Result;

use super::{Aim, Outcome};
use crate::lab::{Lab, Receiver};
use crate::load::{Load, once};
use crate::subject::Tenants;
use crate::subject::postrider::Postrider;

const HOSTS: u16 = 5_000;
/// So few that the answers' 200 ms, not the processor, set the pace: 125 a second for each worker. Two cores shake hands, on
/// both sides, some 700 times a second.
const IN_FLIGHT: (&str, &str) = ("POSTRIDER_DELIVERY__MAX_IN_FLIGHT", "25");
/// Messages for each worker.
const EACH: u64 = 3_000;
const WORKERS: [usize; 3] = [1, 2, 4];

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    let about = "5,000 TLS hosts that answer in 200 ms, 500 applications of 10 endpoints, 1, 2 and 4 workers of 25 attempts in flight each";
    let mut outcome = Outcome::new("tls", about);
    Receiver::restart(lab, HOSTS).await?;
    let port = lab.receiver.tls_port;
    outcome.subjects(WORKERS.map(|workers| format!("postrider, {workers} workers")));
    for _ in 0..lab.rounds {
        for (row, workers) in WORKERS.into_iter().enumerate() {
            let postrider = Postrider::start_with(lab, workers, &[IN_FLIGHT]).await?;
            let tenants = Tenants {
                apps: usize::from(HOSTS) / 10,
                endpoints: 10,
                one_type_each: true,
                limited: false,
            };
            let url = |number: usize| {
                let host = crate::receive::tls_address(u16::try_from(number).unwrap_or_default());
                format!("https://{host}:{port}/slow/0/{number}")
            };
            let target = postrider.target(&tenants, url).await?;
            let load = |messages| Load {
                quiet: Duration::from_secs(60),
                recorded: false,
                messages: Some(messages),
                ..Load::saturating(60.0)
            };
            // One to each host for each worker, so that most connections stand.
            let first = u64::from(HOSTS) * u64::try_from(workers)?;
            once(lab, &target, &load(first)).await?;
            lab.rest().await?;
            let messages = EACH * u64::try_from(workers)?;
            outcome.rows[row]
                .rounds
                .push(once(lab, &target, &load(messages)).await?);
            postrider.stop(lab).await?;
        }
    }
    Receiver::restart(lab, 0).await?;
    let rate = |measure: &crate::load::Measure| Some(measure.delivered_per_s);
    outcome.ratio("2 workers / 1", (1, 0), rate, Some(Aim::AtLeast(1.9)));
    outcome.ratio("4 workers / 1", (2, 0), rate, Some(Aim::AtLeast(3.6)));
    Ok(outcome)
}

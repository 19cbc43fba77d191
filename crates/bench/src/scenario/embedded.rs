//! The set-up without other services: saturation, latency, time to start, memory at rest.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::{Method, StatusCode};
use postrider_testkit::wait::{Poll, wait_for};

use super::{Aim, Outcome, in_turn};
use crate::clock::seconds;
use crate::generate::plan::event_type;
use crate::lab::Lab;
use crate::load::{Load, Measure};
use crate::payload::{Stamp, Template};
use crate::subject::embedded::Embedded;
use crate::subject::floor::Floors;
use crate::subject::{Target, Tenants};
use crate::usage;

const START_LIMIT: Duration = Duration::from_secs(30);
/// How long the process is left alone before its memory at rest is read.
const SETTLE: Duration = Duration::from_secs(2);

pub(super) async fn run(lab: &mut Lab) -> Result<Outcome> {
    let about =
        "one process, embedded store, against the floors on RabbitMQ: 64 producers, then 100/s, 1 KiB";
    let mut outcome = Outcome::new("embedded", about);
    let floors = Floors::start(lab, 1, 1).await?;
    let mut embedded = Embedded::start(lab).await?;
    let base = lab.receiver.url("ok", 0);
    let (made, target) = embedded
        .target(&Tenants::ONE, |number| format!("{base}/{number}"))
        .await?;
    let app = made.apps.first().context("no application")?;

    let mut starts = Vec::new();
    let mut memory = Vec::new();
    for _ in 0..lab.rounds.max(3) {
        let (first_ms, again) = first_delivery(lab, embedded, app).await?;
        embedded = again.restart(lab).await?;
        tokio::time::sleep(SETTLE).await;
        let table = usage::children(&lab.names.get())?;
        memory.push(table.get("postrider").context("the process is gone")?.rss_mib * 1.048_576);
        starts.push(first_ms);
    }
    let target = Target {
        addresses: vec![embedded.address],
        ..target
    };
    let target = target_on(&embedded, target);
    let saturating = Load::saturating(if lab.quick { 2.0 } else { 10.0 });
    let quiet = Load::steady(100.0, if lab.quick { 2.0 } else { 20.0 });
    let subjects = [&floors.bare.target, &floors.batched.target, &target];
    in_turn(lab, &mut outcome, &subjects.map(|target| (target, saturating))).await?;
    let slow = [subjects[0], subjects[2]].map(|target| target.under("100/s"));
    in_turn(lab, &mut outcome, &slow.each_ref().map(|target| (target, quiet))).await?;
    lab.rest().await?;
    let table = usage::children(&lab.names.get())?;
    let loaded = table.get("postrider").context("the process is gone")?.rss_mib * 1.048_576;
    embedded.stop().await?;
    floors.stop().await?;

    let p50 = |measure: &Measure| Some(measure.end_to_end().p50_ms);
    outcome.ratio(
        "sustained / bare loop",
        (2, 0),
        |m| Some(m.sustained_per_s),
        Some(Aim::AtLeast(1.5)),
    );
    outcome.ratio("p50 at 100/s / bare loop", (4, 3), p50, None);
    let figures = [
        ("start to first delivery, ms", starts, 300.0),
        ("memory at rest, MB", memory, 40.0),
    ];
    for (what, figures, most) in figures {
        outcome.found(what, figures, Some(Aim::AtMost(most)));
    }
    // Idempotency keys and done marks are kept for a day and a quarter of an hour.
    outcome.found("memory at rest after all rounds, MB", [loaded], None);
    Ok(outcome)
}

/// The statistics are asked at the address where the process listens now.
fn target_on(embedded: &Embedded, target: Target) -> Target {
    use crate::subject::Record;
    let record = match target.record {
        Record::Api { endpoints, .. } => Record::Api {
            http: embedded.http.clone(),
            endpoints,
        },
        other => other,
    };
    Target { record, ..target }
}

/// Starts it again and sends a message as soon as it takes one; milliseconds until that arrived.
async fn first_delivery(lab: &Lab, embedded: Embedded, app: &str) -> Result<(f64, Embedded)> {
    lab.receiver.reset(1).await?;
    let (started_ns, embedded) = embedded.restart_at_once(lab).await?;
    let path = format!("/api/v1/app/{app}/msg");
    let before = format!(r#"{{"eventType":"{}","payload":"#, event_type(0));
    let stamp = Stamp {
        sent_ns: started_ns,
        number: 0,
    };
    let body = Template::new(&before, 256, "}").stamped(stamp);
    let deadline = tokio::time::Instant::now() + START_LIMIT;
    loop {
        match embedded
            .http
            .exchange(Method::POST, &path, Some(body.clone()))
            .await
        {
            Ok((StatusCode::ACCEPTED, _)) => break,
            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "it takes no message within {START_LIMIT:?}"
        );
    }
    let arrived_ns = wait_for("the first delivery", START_LIMIT, async || {
        let counts = lab.receiver.counts().await?;
        let group = counts.first().context("the receiver has no groups")?;
        Ok(if group.delivered > 0 {
            Poll::Ready(group.last_ns)
        } else {
            Poll::NotYet("none".into())
        })
    })
    .await?;
    Ok((seconds(started_ns, arrived_ns) * 1_000.0, embedded))
}

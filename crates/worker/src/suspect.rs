//! The delivery that comes back again and again, alone: is it the one that kills workers?
//!
//! A return is no proof. Whatever a dying worker held comes back with one more return, the culprit and those that merely
//! lay beside it. So suspects wait until what came with them has had its turn, and are then tried one at a time, each
//! after a mark in the limits that says so: one that comes back although it is marked was on trial when its worker
//! died, and is parked. The others are delivered sooner or later.
//!
//! Not load-bearing: without the limits there are no marks, a suspect is tried again, and nothing is parked.

use std::time::Duration;

use bytes::Bytes;
use postrider_limits::{FinishReport, GateRequest, Signal, Verdict};
use postrider_model::Job;
use postrider_telemetry::error_chain;
use tokio::sync::OwnedSemaphorePermit;

use crate::run::Context;

/// Set in the run by which a trial is marked, so that it is apart from the run's done mark. No delivery has so many runs.
const TRIAL: u32 = 1 << 31;
const MARK: Bytes = Bytes::from_static(b"on trial");

/// What has come to the worker together with a suspect, and is none yet, kills the worker within this time or not at all,
/// most likely.
const OTHERS_FIRST: Duration = Duration::from_secs(1);

/// The suspect's turn. It lasts for as long as the permit is held.
pub(crate) async fn turn(context: &Context) -> Option<OwnedSemaphorePermit> {
    tokio::time::sleep(OTHERS_FIRST).await;
    context.trial.clone().acquire_owned().await.ok()
}

/// Whether a worker died while it tried this delivery and no other suspect. Otherwise it is marked as being on trial now.
/// The caller tries one suspect at a time.
pub(crate) async fn is_fatal(context: &Context, job: &Job) -> bool {
    let limits = &context.deps.limits;
    // No rate and no backlog: a question that takes nothing.
    let ask = |run| GateRequest {
        app: job.message.app,
        endpoint: job.endpoint,
        delivery: job.delivery,
        run,
        rate: None,
        released: true,
    };
    let verdicts = match limits.gate(&[ask(job.run), ask(job.run | TRIAL)]).await {
        Ok(gates) => gates.into_iter().map(|gate| gate.verdict).collect(),
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "the limits are away; a suspect is tried again");
            vec![]
        }
    };
    match verdicts.as_slice() {
        // Its outcome is known and only has to be journaled again.
        [Verdict::Done(_), ..] => return false,
        [_, Verdict::Done(_)] => return true,
        _ => {}
    }
    let trial = FinishReport {
        app: job.message.app,
        endpoint: job.endpoint,
        delivery: job.delivery,
        run: job.run | TRIAL,
        probe: false,
        mark: Some(MARK),
        signal: Signal::Neutral,
    };
    if let Err(error) = limits.finish(&[trial]).await {
        tracing::warn!(error = %error_chain(&error), "a suspect is tried without a mark");
    }
    false
}

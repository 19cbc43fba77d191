//! The delivery that comes back again and again, alone: is it the one that kills workers?
//!
//! A return is no proof. Whatever a dying worker held comes back with one more return, the culprit and those that merely
//! lay beside it. So suspects wait until what came with them has had its turn, and are then tried one at a time, each
//! after a mark in the store that says so: one that comes back although it is marked was on trial when its worker
//! died, and is parked. The others are delivered sooner or later.
//!
//! Suspects are rare, so a write for each is nothing; and a mark in the limits would be lost with them. Without the
//! store there are no marks, a suspect is tried again, and nothing is parked.

use std::time::Duration;

use postrider_limits::{GateRequest, Verdict};
use postrider_model::Job;
use postrider_telemetry::error_chain;
use tokio::sync::OwnedSemaphorePermit;

use crate::run::Context;

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
    // No rate and no backlog: a question that takes nothing.
    let done = GateRequest {
        app: job.message.app,
        endpoint: job.endpoint,
        delivery: job.delivery,
        run: job.run,
        rate: None,
        released: true,
    };
    if let Ok(gates) = context.deps.limits.gate(&[done]).await
        && let [gate] = gates.as_slice()
        && matches!(gate.verdict, Verdict::Done(_))
    {
        // Its outcome is known and only has to be journaled again.
        return false;
    }
    match context.deps.store.begin_trial(job.delivery, job.run).await {
        Ok(was_on_trial) => was_on_trial,
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "a suspect is tried without a mark");
            false
        }
    }
}

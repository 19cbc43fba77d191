//! A delivery at which the embedded process died again and again, in the end alone: it ends as parked, on record.
//!
//! Scaled out, where the broker counts returns, workers find out by themselves.

use postrider_model::{CancelReason, Next, Outcome, Record, UnixMillis};
use postrider_store::{LeasedJob, PARK_DEATHS};
use postrider_telemetry::error_chain;

use crate::Context;

pub(crate) fn is_fatal(leased: &LeasedJob) -> bool {
    leased.deaths >= PARK_DEATHS
}

/// Journals the end of each. What the journal does not take is leased again once its lease has run out.
pub(crate) async fn park(context: &Context, leased: Vec<LeasedJob>) {
    let records = leased.into_iter().map(|LeasedJob { job, deaths }| {
        tracing::error!(delivery.id = %job.delivery, deaths, "a delivery kills the process; parked");
        Record::Outcome(Box::new(Outcome {
            delivery: job.delivery,
            message: job.message.id,
            endpoint: job.endpoint,
            app: job.message.app,
            run: job.run,
            attempts: job.attempts,
            trigger: job.trigger,
            at: UnixMillis::now(),
            attempt: None,
            next: Next::Cancelled(CancelReason::Parked),
        }))
    });
    if let Err(error) = context.deps.journal.publish(records.collect()).await {
        tracing::warn!(error = %error_chain(&error), "a delivery that kills the process is not parked yet");
    }
}

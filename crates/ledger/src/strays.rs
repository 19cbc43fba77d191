//! What the broker could not place (its queue was deleted, or it came back a million times) goes back where it can be
//! handled: a job becomes a waiting row, by way of the journal; journal records go to the journal again; what nobody
//! can read is parked.

use std::sync::Arc;
use std::time::Duration;

use postrider_broker::{Incoming, Queue};
use postrider_model::{DeferReason, Job, Next, Outcome, Record, UnixMillis};
use postrider_wire::Frame;

use postrider_telemetry::error_chain;

use crate::Context;

const PREFETCH: u16 = 16;
/// How soon a stray is due again: its queue may need a moment to be declared anew.
const DELAY: Duration = Duration::from_secs(1);

pub(crate) async fn run(context: Arc<Context>) {
    while !context.stop.is_cancelled() {
        let mut subscription = match context.deps.broker.subscribe(Queue::Stray, PREFETCH).await {
            Ok(subscription) => subscription,
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the stray queue cannot be consumed");
                if context.stopped_within(DELAY).await {
                    return;
                }
                continue;
            }
        };
        loop {
            let incoming = tokio::select! {
                () = context.stop.cancelled() => return,
                incoming = subscription.next() => incoming,
            };
            let Some(incoming) = incoming else { break };
            // On failure the subscription is dropped, which returns the frame; try again a little later.
            if !take_back(&context, incoming).await {
                if context.stopped_within(DELAY).await {
                    return;
                }
                break;
            }
        }
    }
}

/// False when the frame must come back.
async fn take_back(context: &Context, incoming: Incoming) -> bool {
    context.deps.metrics.stray();
    let records = match postrider_wire::decode(incoming.frame.clone()) {
        Ok(Frame::Jobs(jobs)) => {
            tracing::warn!(deliveries = jobs.len(), "stray deliveries were taken back");
            jobs.iter().map(waiting_again).collect()
        }
        Ok(Frame::Journal(records)) => {
            tracing::warn!(records = records.len(), "stray journal records were taken back");
            records
        }
        Err(error) => {
            let reason = error_chain(&error);
            tracing::error!(reason, "a stray frame cannot be read; parked");
            context.deps.metrics.parked("frame");
            if let Err(error) = context.deps.store.park("frame", &reason, &incoming.frame).await {
                tracing::error!(error = %error_chain(&error), "a stray frame cannot be parked");
                return false;
            }
            return incoming.receipt.acknowledge().await;
        }
    };
    match context.deps.journal.publish(records).await {
        Ok(()) => {
            // False means that it comes back and is taken back again, which changes nothing.
            let _ = incoming.receipt.acknowledge().await;
            true
        }
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "strays cannot be taken back");
            false
        }
    }
}

fn waiting_again(job: &Job) -> Record {
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
        next: Next::Deferred {
            reason: DeferReason::Stray,
            delay: DELAY,
        },
    }))
}

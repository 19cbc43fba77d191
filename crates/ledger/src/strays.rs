//! What the broker could not place (its queue was deleted, or it came back a million times) goes back where it can be
//! handled: a job becomes a waiting row, by way of the journal; a frame of journal records goes to the journal again, byte
//! for byte; what nobody can read is parked.

use std::sync::Arc;
use std::time::Duration;

use postrider_broker::{Incoming, Queue};
use postrider_model::{DeferReason, Job, Next, Outcome, Record, UnixMillis};
use postrider_store::StoreError;
use postrider_wire::Frame;

use postrider_telemetry::error_chain;
use tokio::time::Instant;

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
        // When what nobody takes is asked for again, by a new subscription.
        let mut again = None;
        loop {
            let incoming = tokio::select! {
                () = context.stop.cancelled() => return,
                () = async {
                    match again {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => break,
                incoming = subscription.next() => incoming,
            };
            let Some(incoming) = incoming else { break };
            match take_back(&context, incoming).await {
                Taken::Done => {}
                Taken::Refused => {
                    again.get_or_insert_with(|| Instant::now() + context.settings.held_retry);
                }
                // The subscription is dropped, which returns the frame; try again a little later.
                Taken::NotNow => {
                    if context.stopped_within(DELAY).await {
                        return;
                    }
                    break;
                }
            }
        }
    }
}

/// What became of a frame.
enum Taken {
    /// It is where it belongs.
    Done,
    /// The store will not have it: the broker keeps it, unacknowledged, and others go on.
    Refused,
    /// It must come back.
    NotNow,
}

async fn take_back(context: &Context, incoming: Incoming) -> Taken {
    context.deps.metrics.stray();
    let (published, unreadable) = match postrider_wire::decode_partial(incoming.frame.clone()) {
        Ok((Frame::Jobs(jobs), rejected)) => {
            tracing::warn!(deliveries = jobs.len(), "stray deliveries were taken back");
            let records = jobs.iter().map(waiting_again).collect();
            let bad = rejected
                .first()
                .map(|bad| format!("job {} of the frame: {}", bad.index, error_chain(&bad.error)));
            (context.deps.journal.publish(records).await, bad)
        }
        Ok((Frame::Journal(records), _)) => {
            tracing::warn!(records = records.len(), "stray journal records were taken back");
            // The recorder parks what it cannot read of them.
            let frame = incoming.frame.clone();
            (context.deps.broker.publish(Queue::Journal, frame).await, None)
        }
        Err(error) => (Ok(()), Some(error_chain(&error))),
    };
    if let Err(error) = published {
        tracing::warn!(error = %error_chain(&error), "strays cannot be taken back");
        return Taken::NotNow;
    }
    if let Some(reason) = unreadable
        && let Err(error) = park(context, &reason, &incoming).await
    {
        tracing::error!(error = %error_chain(&error), "a stray frame cannot be parked");
        return if error.is_transient() {
            Taken::NotNow
        } else {
            Taken::Refused
        };
    }
    // False means that it comes back and is taken back again, which changes nothing.
    let _ = incoming.receipt.acknowledge().await;
    Taken::Done
}

/// Keeps the frame, as it is, for an operator.
async fn park(context: &Context, reason: &str, incoming: &Incoming) -> Result<(), StoreError> {
    tracing::error!(reason, "a stray frame cannot be read; parked");
    if context.deps.store.park("frame", reason, &incoming.frame).await? {
        context.deps.metrics.parked("frame");
    }
    Ok(())
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

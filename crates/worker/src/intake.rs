//! Frames in: one task a queue. Takes room for a frame before its jobs go on, so that what this process holds is
//! bounded in jobs and in bytes; the rest stays in the broker.
//!
//! A frame that keeps coming back holds something that kills workers. From the third return on its jobs go back to the
//! queue one by one. Those that still come back five times alone are tried one after the other; the one that kills a
//! worker then is parked, and the rest have been delivered.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use postrider_broker::{Incoming, PublishError, Queue, Subscription};
use postrider_model::{CancelReason, DeferReason, Job, Next};
use postrider_telemetry::error_chain;
use postrider_telemetry::labels::Duplicate;
use postrider_wire::Frame;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::duty::{Duty, key};
use crate::envelope::Share;
use crate::room::Taken;
use crate::run::Context;
use crate::{dispatch, envelope, finish, suspect};

/// Returns after which a frame of several jobs is split.
const SPLIT_AT: u32 = 3;
/// Returns after which a job alone is a suspect.
pub(crate) const TRIAL_AT: u32 = 5;
const RESUBSCRIBE: Duration = Duration::from_secs(1);

/// Consumes a queue until `stop`; keeps the subscription, and with it what is unacknowledged, until `released`.
pub(crate) async fn run(
    context: Arc<Context>,
    queue: Queue,
    stop: CancellationToken,
    released: CancellationToken,
) {
    loop {
        let give_back = Arc::new(Notify::new());
        let prefetch = context.settings.prefetch;
        match context.deps.broker.subscribe(queue, prefetch).await {
            Ok(mut subscription) => {
                let consuming = consume(&context, queue, &mut subscription, &give_back, &stop);
                let ended = tokio::select! {
                    ended = AssertUnwindSafe(consuming).catch_unwind() => ended,
                    // What is being tried goes on; its frame finds it when it comes back.
                    () = give_back.notified() => Ok(()),
                };
                // The queue must not go unread for that. What was held comes back, and is split and parked in time.
                if ended.is_err() {
                    tracing::error!(?queue, "consuming panicked");
                }
                if stop.is_cancelled() {
                    subscription.stop();
                    let returned = released.run_until_cancelled(return_unread(&mut subscription));
                    if returned.await.is_some() {
                        released.cancelled().await;
                    }
                    return;
                }
            }
            Err(error) => tracing::warn!(?queue, error = %error_chain(&error), "a queue cannot be consumed"),
        }
        if stop
            .run_until_cancelled(tokio::time::sleep(RESUBSCRIBE))
            .await
            .is_none()
        {
            return;
        }
    }
}

/// What it had not come to is for other workers, and must not wait for this one's drain.
async fn return_unread(subscription: &mut Subscription) {
    while let Some(unread) = subscription.next().await {
        unread.receipt.give_back().await;
    }
}

async fn consume(
    context: &Arc<Context>,
    queue: Queue,
    subscription: &mut Subscription,
    give_back: &Arc<Notify>,
    stop: &CancellationToken,
) {
    while let Some(Some(incoming)) = stop.run_until_cancelled(subscription.next()).await {
        // Of a connection that is gone: it comes again.
        if incoming.receipt.is_void() {
            continue;
        }
        let jobs = match postrider_wire::decode(incoming.frame.clone()) {
            Ok(Frame::Jobs(jobs)) if !jobs.is_empty() => jobs,
            Ok(Frame::Jobs(_)) => {
                let _ = incoming.receipt.acknowledge().await;
                continue;
            }
            Ok(Frame::Journal(_)) => {
                send_astray(context, queue, incoming, "a frame of journal records").await;
                continue;
            }
            Err(error) => {
                send_astray(context, queue, incoming, &error_chain(&error)).await;
                continue;
            }
        };
        let room = context.room.take(queue, jobs.len(), incoming.frame.len());
        let Some(room) = stop.run_until_cancelled(room).await else {
            return incoming.receipt.give_back().await;
        };
        let returns = incoming.delivery_count;
        let (context, give_back) = (context.clone(), give_back.clone());
        context.tasks.clone().spawn(async move {
            if returns >= SPLIT_AT && jobs.len() > 1 {
                let shares = envelope::shares(incoming.receipt, jobs.len(), room, give_back);
                split(&context, queue, jobs, shares, returns).await;
            } else {
                begin(&context, incoming, jobs, room, give_back).await;
            }
        });
    }
}

/// Takes a frame's deliveries on: all but those that are at work here already.
pub(crate) async fn begin(
    context: &Arc<Context>,
    incoming: Incoming,
    jobs: Vec<Job>,
    room: Taken,
    give_back: Arc<Notify>,
) {
    let suspect = incoming.delivery_count >= TRIAL_AT;
    let shares = envelope::shares(incoming.receipt, jobs.len(), room, give_back);
    let (fresh, duties): (Vec<Job>, Vec<Duty>) = jobs
        .into_iter()
        .zip(shares)
        .filter_map(|(job, share)| {
            let begun = context.active.begin(key(&job), share);
            if !begun {
                context.deps.metrics.duplicate(Duplicate::InFlight);
                return None;
            }
            let duty = Duty::new(context, &job);
            Some((job, duty))
        })
        .unzip();
    if suspect && let [job] = fresh.as_slice() {
        // Its copies join it while it waits: a death in the middle of a split makes some, and they are no suspects yet.
        if let Some(turn) = suspect::turn(context).await {
            // The next suspect's turn is when this one is settled.
            context.active.keep(key(job), turn);
        }
        // Its connection went while it waited: it comes back to be tried elsewhere, and must not be marked either.
        if context.active.is_void(key(job)) {
            return;
        }
        // Should its turn have come too late, it is given back untried, and must not be marked.
        if !dispatch::lease_is_over(context, job) && suspect::is_fatal(context, job).await {
            tracing::error!(delivery.id = %job.delivery, "a delivery kills workers; parked");
            for duty in duties {
                finish::untried(context, job, Next::Cancelled(CancelReason::Parked), duty).await;
            }
            return;
        }
    }
    dispatch::dispatch(context, fresh, duties).await;
}

/// What this worker cannot read goes to the stray queue as it is: a newer ledger may read it, and parks it otherwise.
async fn send_astray(context: &Context, queue: Queue, incoming: Incoming, reason: &str) {
    tracing::error!(?queue, reason, "a frame cannot be read");
    if publish_until_taken(context, Queue::Stray, incoming.frame).await {
        let _ = incoming.receipt.acknowledge().await;
    }
}

/// Publishes a suspect frame's jobs one by one and acknowledges it once all are elsewhere. Of each `ordered` endpoint
/// only the head goes on; what is behind it returns to the store, so that the order holds.
async fn split(context: &Arc<Context>, queue: Queue, jobs: Vec<Job>, shares: Vec<Share>, returns: u32) {
    tracing::warn!(
        ?queue,
        deliveries = jobs.len(),
        returns,
        "a suspect frame is split"
    );
    let (singly, back) = parted(jobs);
    let mut shares = shares.into_iter();
    let next = Next::Deferred {
        reason: DeferReason::Ordered,
        delay: Duration::ZERO,
    };
    let deferred = TaskTracker::new();
    for (job, share) in back.iter().zip(shares.by_ref()) {
        // What is being tried here still ends by itself.
        if context.active.begin(key(job), share) {
            let duty = Duty::new(context, job).watched_by(&deferred);
            finish::untried(context, job, next, duty).await;
        }
    }
    deferred.close();
    deferred.wait().await;
    for (job, share) in singly.iter().zip(shares) {
        let frame = postrider_wire::encode_jobs(std::slice::from_ref(job));
        if !publish_until_taken(context, queue, frame).await {
            return;
        }
        envelope::settle([share]).await;
    }
}

/// What of a suspect frame goes on alone, and what returns to the store: all but the first of an `ordered` endpoint.
fn parted(jobs: Vec<Job>) -> (Vec<Job>, Vec<Job>) {
    let mut heads = HashSet::new();
    jobs.into_iter()
        .partition(|job| !job.ordered || heads.insert(job.endpoint))
}

/// Publishes until the broker takes it; false when the worker stops first (the frame then comes back).
async fn publish_until_taken(context: &Context, queue: Queue, frame: Bytes) -> bool {
    let mut delay = Duration::from_millis(50);
    while !context.is_stopping() {
        match context.deps.broker.publish(queue, frame.clone()).await {
            Ok(()) => return true,
            Err(PublishError::Full | PublishError::Blocked | PublishError::Down) => {}
            Err(error) => tracing::warn!(?queue, error = %error_chain(&error), "a frame was not published"),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(5));
    }
    false
}

#[cfg(test)]
mod tests {
    use postrider_model::{AppId, DeliveryId, EndpointId, Message, MessageId, Trigger, UnixMillis};

    use super::*;

    #[test]
    fn of_a_suspect_frame_only_the_head_of_each_ordered_endpoint_goes_on() {
        let mut rng = rand::rng();
        let message = Arc::new(Message {
            id: MessageId::generate(UnixMillis(1), &mut rng),
            app: AppId::generate(UnixMillis(1), &mut rng),
            event_type: "a".to_owned(),
            event_id: None,
            channels: Vec::new(),
            content_type: "application/json".to_owned(),
            payload: Bytes::from_static(b"{}"),
            accepted_at: UnixMillis(1),
            payload_retention_days: None,
            traceparent: None,
        });
        let ends: Vec<EndpointId> = (0..3)
            .map(|_| EndpointId::generate(UnixMillis(1), &mut rng))
            .collect();
        let job = |run: u32, endpoint: usize, ordered: bool| Job {
            delivery: DeliveryId::derive(message.id, ends[endpoint]),
            endpoint: ends[endpoint],
            message: message.clone(),
            run,
            attempts: 0,
            trigger: Trigger::Scheduled,
            probe: false,
            has_token: false,
            ordered,
            lease_until: None,
        };
        let frame = vec![
            job(1, 0, true),
            job(2, 1, false),
            job(3, 0, true),
            job(4, 2, true),
            job(5, 1, false),
            job(6, 2, true),
        ];
        let (singly, back) = parted(frame);
        let runs = |jobs: Vec<Job>| jobs.iter().map(|job| job.run).collect::<Vec<_>>();
        assert_eq!((runs(singly), runs(back)), (vec![1, 2, 4, 5], vec![3, 6]));
    }
}

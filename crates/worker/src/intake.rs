//! Frames in: one task a queue. Takes room for a frame before its jobs go on, so that what this process holds is
//! bounded in jobs and in bytes; the rest stays in the broker.
//!
//! A frame that keeps coming back holds something that kills workers. From the third return on its jobs go back to the
//! queue one by one; the one that still comes back five times alone is parked, and the rest have been delivered.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_broker::{Incoming, PublishError, Queue, Subscription};
use postrider_model::{CancelReason, DeferReason, Job, Next};
use postrider_telemetry::error_chain;
use postrider_wire::Frame;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::run::{Context, ROOM_UNIT};
use crate::{dispatch, envelope, finish};

/// Returns after which a frame of several jobs is split.
const SPLIT_AT: u32 = 3;
/// Returns after which a job alone is parked.
const PARK_AT: u32 = 5;
const RESUBSCRIBE: Duration = Duration::from_secs(1);

/// Consumes a queue until `stop`; keeps the subscription, and with it what is unacknowledged, until `released`.
pub(crate) async fn run(
    context: Arc<Context>,
    queue: Queue,
    stop: CancellationToken,
    released: CancellationToken,
) {
    loop {
        match context
            .deps
            .broker
            .subscribe(queue, context.settings.prefetch)
            .await
        {
            Ok(mut subscription) => {
                let ended = stop
                    .run_until_cancelled(consume(&context, queue, &mut subscription))
                    .await;
                if ended.is_none() {
                    released.cancelled().await;
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

async fn consume(context: &Arc<Context>, queue: Queue, subscription: &mut Subscription) {
    while let Some(incoming) = subscription.next().await {
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
        let Some(room) = take_room(context, jobs.len(), incoming.frame.len()).await else {
            return;
        };
        let context = context.clone();
        let tasks = context.tasks.clone();
        tasks.spawn(async move {
            if incoming.delivery_count >= SPLIT_AT && jobs.len() > 1 {
                split(&context, queue, incoming, jobs, room).await;
                return;
            }
            let shares = envelope::shares(incoming.receipt, jobs.len(), room);
            let fresh: Vec<Job> = jobs
                .into_iter()
                .zip(shares)
                .filter_map(|(job, share)| {
                    context
                        .active
                        .begin((job.delivery, job.run), share)
                        .then_some(job)
                })
                .collect();
            if let [job] = fresh.as_slice()
                && incoming.delivery_count >= PARK_AT
            {
                tracing::error!(delivery.id = %job.delivery, "a delivery came back too often; parked");
                finish::untried(&context, job, Next::Cancelled(CancelReason::Parked)).await;
                return;
            }
            dispatch::dispatch(&context, fresh).await;
        });
    }
}

async fn take_room(context: &Context, jobs: usize, bytes: usize) -> Option<Vec<OwnedSemaphorePermit>> {
    let jobs = jobs.min(context.settings.held_jobs_max);
    let units = bytes
        .div_ceil(ROOM_UNIT)
        .min(context.settings.held_bytes_max / ROOM_UNIT);
    let jobs = context
        .room_jobs
        .clone()
        .acquire_many_owned(u32::try_from(jobs).unwrap_or(u32::MAX))
        .await
        .ok()?;
    let bytes = context
        .room_bytes
        .clone()
        .acquire_many_owned(u32::try_from(units).unwrap_or(u32::MAX))
        .await
        .ok()?;
    Some(vec![jobs, bytes])
}

/// What this worker cannot read goes to the stray queue as it is: a newer ledger may read it, and parks it otherwise.
async fn send_astray(context: &Context, queue: Queue, incoming: Incoming, reason: &str) {
    tracing::error!(?queue, reason, "a frame cannot be read");
    if publish_until_taken(context, Queue::Stray, incoming.frame).await {
        let _ = incoming.receipt.acknowledge().await;
    }
}

/// Publishes a suspect frame's jobs one by one and acknowledges it. Of an `ordered` run only the head goes on; the
/// rest returns to the store, so that the order holds.
async fn split(
    context: &Arc<Context>,
    queue: Queue,
    incoming: Incoming,
    mut jobs: Vec<Job>,
    _room: Vec<OwnedSemaphorePermit>,
) {
    tracing::warn!(
        ?queue,
        deliveries = jobs.len(),
        returns = incoming.delivery_count,
        "a suspect frame is split"
    );
    if jobs.iter().all(|job| job.ordered) {
        for job in jobs.split_off(1) {
            finish::untried(
                context,
                &job,
                Next::Deferred {
                    reason: DeferReason::Ordered,
                    delay: Duration::ZERO,
                },
            )
            .await;
        }
    }
    for job in &jobs {
        if !publish_until_taken(
            context,
            queue,
            postrider_wire::encode_jobs(std::slice::from_ref(job)),
        )
        .await
        {
            return;
        }
    }
    let _ = incoming.receipt.acknowledge().await;
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

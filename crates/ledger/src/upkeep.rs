//! Housekeeping: sweeps of what waits for endpoints that are gone, background tasks, retention, and the counts that
//! operators watch. Each step is one bounded chunk; several ledgers may do it at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use postrider_broker::Queue;
use postrider_store::{RetentionReport, StoreError, SweepReport};
use postrider_telemetry::error_chain;
use postrider_telemetry::labels::QueueKind;
use tokio::time::Instant;

use crate::{Context, lag};

const COUNT_EVERY: Duration = Duration::from_secs(5);
/// Longest look at the queues of a kind.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// A delivery whose message was not recorded within this is given up: a producer repeats a refused request earlier, and
/// its claim on the idempotency key has ended by then.
const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn run(context: Arc<Context>) {
    let mut next_retain = Instant::now();
    let mut next_count = Instant::now();
    let mut orphans_seen = 0;
    loop {
        let mut busy = match sweep(&context).await {
            Ok(busy) => busy,
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "a sweep failed");
                false
            }
        };
        if Instant::now() >= next_count {
            count(&context).await;
            orphans(&context, &mut orphans_seen).await;
            next_count = Instant::now() + COUNT_EVERY;
        }
        if Instant::now() >= next_retain {
            // Chunk after chunk while there is more: what expires in a day is what came in on another day, and a rest
            // between two chunks would bound how much that may be.
            let more = retain(&context).await;
            busy |= more;
            let rest = if more {
                Duration::ZERO
            } else {
                context.settings.retain_every
            };
            next_retain = Instant::now() + rest;
        }
        let pause = if busy {
            context.settings.tick
        } else {
            context.settings.sweep_every
        };
        if context.stopped_within(pause).await {
            return;
        }
    }
}

async fn sweep(context: &Context) -> Result<bool, StoreError> {
    let report = context.deps.store.sweep(context.settings.sweep_max).await?;
    if report.recovered > 0 {
        context.wake.notify_one();
    }
    Ok(report != SweepReport::default())
}

/// Deliveries of messages that were never recorded. Whatever the journal still holds may be the message, so nothing is
/// given up before it has been written.
async fn orphans(context: &Context, seen: &mut u64) {
    let cancel_after = lag::is_current(context).await.then_some(ORPHAN_AFTER);
    let report = match context
        .deps
        .store
        .orphans(cancel_after, context.settings.sweep_max)
        .await
    {
        Ok(report) => report,
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "deliveries without a message cannot be counted");
            return;
        }
    };
    if report.waiting != *seen {
        tracing::error!(
            deliveries = report.waiting,
            "deliveries wait for a message that was never recorded"
        );
        *seen = report.waiting;
    }
    if report.cancelled > 0 {
        context.deps.metrics.orphans_cancelled(report.cancelled);
        tracing::error!(
            deliveries = report.cancelled,
            "deliveries were cancelled: their message was never recorded, and it is a day old"
        );
    }
}

async fn count(context: &Context) {
    match context.deps.store.waiting_counts().await {
        Ok((counts, oldest)) => {
            let counts = counts.iter().map(|count| (count.reason.as_str(), count.count));
            context.deps.metrics.waiting(counts, oldest);
        }
        Err(error) => tracing::warn!(error = %error_chain(&error), "what waits cannot be counted"),
    }
    match context.deps.limits.open_breakers().await {
        Ok(open) => context.deps.metrics.breakers_open(open),
        Err(error) => tracing::warn!(error = %error_chain(&error), "open breakers cannot be counted"),
    }
    match context.deps.store.parked_count().await {
        Ok(parked) => context.deps.metrics.parked_now(parked),
        Err(error) => tracing::warn!(error = %error_chain(&error), "what is parked cannot be counted"),
    }
    count_frames(context).await;
}

/// Looks into the broker's queues. Without an answer the last count stands: health tells when the broker is away.
async fn count_frames(context: &Context) {
    let shards = 0..context.deps.jobs.shards();
    let kinds = [
        (QueueKind::Deliver, shards.clone().map(Queue::Deliver).collect()),
        (QueueKind::Retry, shards.map(Queue::Retry).collect()),
        (QueueKind::Journal, vec![Queue::Journal]),
        (QueueKind::Stray, vec![Queue::Stray]),
    ];
    let looks = kinds.map(|(kind, queues): (QueueKind, Vec<Queue>)| async move {
        let depths = queues.into_iter().map(|queue| context.deps.broker.depth(queue));
        if let Ok(Ok(depths)) = tokio::time::timeout(LOOK_LIMIT, try_join_all(depths)).await {
            context.deps.metrics.queue_frames(kind, depths.iter().sum());
        }
    });
    join_all(looks).await;
}

/// True while there is more to remove.
async fn retain(context: &Context) -> bool {
    let settings = &context.settings;
    let chunk = context
        .deps
        .store
        .retain(
            settings.payload_retention,
            settings.log_retention,
            settings.sweep_max,
        )
        .await;
    match chunk {
        Ok(report) => report != RetentionReport::default(),
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "retention failed");
            false
        }
    }
}

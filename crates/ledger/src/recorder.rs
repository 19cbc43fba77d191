//! The recorder: journal in, rows out.
//!
//! A batch is what has arrived while the last one was written, so batches grow with load by themselves. Frames are
//! acknowledged after the commit; a crash in between records them again, which changes nothing.
//!
//! With the store away the consumer is cancelled: the broker keeps the journal, another recorder may take over, and
//! nothing is held here. A batch that the store refuses is halved until the bad record stands alone; that one is
//! parked with the reason, the others are recorded.

use std::sync::Arc;
use std::time::Duration;

use postrider_broker::{Incoming, Queue, Receipt, Subscription};
use postrider_model::{AppId, CancelReason, Next, Record, UnixMillis};
use postrider_store::{RecordReport, StoreError};
use postrider_wire::Frame;

use postrider_telemetry::error_chain;

use crate::Context;

/// After so long without a frame the journal is empty, and nothing lags.
const IDLE: Duration = Duration::from_secs(1);

pub(crate) async fn run(context: Arc<Context>) {
    while !context.stop.is_cancelled() {
        let subscription = context
            .deps
            .broker
            .subscribe(Queue::Journal, context.settings.journal_prefetch)
            .await;
        match subscription {
            Ok(subscription) => {
                if consume(&context, subscription).await.is_err() && !context.store_is_back().await {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the journal cannot be consumed");
                if context.stopped_within(Duration::from_secs(1)).await {
                    return;
                }
            }
        }
    }
}

/// The store went away: give the frames back.
struct StoreAway;

/// Frames taken together, and what they hold.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    receipts: Vec<Receipt>,
    bytes: usize,
}

async fn consume(context: &Context, mut subscription: Subscription) -> Result<(), StoreAway> {
    loop {
        let first = tokio::select! {
            biased;
            () = context.stop.cancelled() => return Ok(()),
            first = subscription.next() => first,
            () = tokio::time::sleep(IDLE) => {
                context.deps.metrics.journal_lag(Duration::ZERO);
                continue;
            }
        };
        let Some(first) = first else { return Ok(()) };
        let mut batch = Batch::default();
        take(context, &mut batch, first).await?;
        while batch.records.len() < context.settings.batch_max_records
            && batch.bytes < context.settings.batch_max_bytes
            && let Some(frame) = subscription.try_next()
        {
            take(context, &mut batch, frame).await?;
        }
        write(context, batch).await?;
    }
}

/// Decodes a frame into the batch. What cannot be read is parked first, in the store, and so never lost.
async fn take(context: &Context, batch: &mut Batch, incoming: Incoming) -> Result<(), StoreAway> {
    batch.bytes += incoming.frame.len();
    let (reason, whole) = match postrider_wire::decode_partial(incoming.frame.clone()) {
        Ok((Frame::Journal(records), rejected)) => {
            batch.records.extend(records);
            let Some(bad) = rejected.first() else {
                batch.receipts.push(incoming.receipt);
                return Ok(());
            };
            (
                format!("record {} of the frame: {}", bad.index, error_chain(&bad.error)),
                "record",
            )
        }
        Ok((Frame::Jobs(_), _)) => ("a frame of jobs in the journal".to_owned(), "frame"),
        Err(error) => (error_chain(&error), "frame"),
    };
    tracing::error!(reason, "a journal frame cannot be read; parked");
    park(context, whole, &reason, &incoming.frame).await?;
    batch.receipts.push(incoming.receipt);
    Ok(())
}

async fn park(
    context: &Context,
    kind: &'static str,
    reason: &str,
    bytes: &bytes::Bytes,
) -> Result<(), StoreAway> {
    context.deps.metrics.parked(kind);
    match context.deps.store.park(kind, reason, bytes).await {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::error!(error = %error_chain(&error), "what cannot be handled cannot be parked either");
            Err(StoreAway)
        }
    }
}

async fn write(context: &Context, batch: Batch) -> Result<(), StoreAway> {
    let started = tokio::time::Instant::now();
    record(context, &batch.records).await?;
    postrider_failpoint::hit("recorder.after_store");
    let now = UnixMillis::now();
    let lag = batch
        .records
        .iter()
        .map(at)
        .min()
        .map_or(Duration::ZERO, |oldest| now.since(oldest));
    context
        .deps
        .metrics
        .recorder_batch(batch.records.len(), started.elapsed());
    context.deps.metrics.journal_lag(lag);
    for receipt in batch.receipts {
        // False means that the frame comes back: it will be recorded again, which changes nothing.
        let _ = receipt.acknowledge().await;
    }
    context.wake.notify_one();
    Ok(())
}

/// Records a batch; halves it when the store refuses it, down to the bad record. Iterative, oldest first, so that
/// the order of acceptance is kept.
async fn record(context: &Context, records: &[Record]) -> Result<(), StoreAway> {
    let mut parts = vec![records];
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        match context.deps.store.record(part).await {
            Ok(report) => after(context, part, report).await?,
            Err(error) if error.is_transient() => {
                tracing::warn!(error = %error_chain(&error), "the store is away; the journal waits in the broker");
                return Err(StoreAway);
            }
            Err(error) => match part {
                [bad] => park_record(context, bad, &error).await?,
                _ => {
                    let (older, newer) = part.split_at(part.len() / 2);
                    parts.push(newer);
                    parts.push(older);
                }
            },
        }
    }
    Ok(())
}

async fn park_record(context: &Context, record: &Record, error: &StoreError) -> Result<(), StoreAway> {
    let reason = error_chain(error);
    tracing::error!(reason, "the store refuses a record; parked");
    park(
        context,
        "record",
        &reason,
        &postrider_wire::encode_journal(std::slice::from_ref(record)),
    )
    .await
}

/// What a recorded batch means for others.
async fn after(context: &Context, records: &[Record], report: RecordReport) -> Result<(), StoreAway> {
    if report.stale > 0 {
        tracing::debug!(
            outcomes = report.stale,
            "outcomes of a run that was no longer current"
        );
    }
    for (app, version) in report.reconfigured {
        publish_version(context, app, version).await;
    }
    for endpoint in report.disabled {
        tracing::warn!(endpoint.id = %endpoint, "an endpoint was disabled: it is gone or has failed for too long");
    }
    for record in records {
        if let Record::Outcome(outcome) = record
            && outcome.next == Next::Cancelled(CancelReason::Parked)
        {
            let reason = format!("delivery {} came back to a worker too often", outcome.delivery);
            park(context, "job", &reason, &postrider_wire::encode_outcome(outcome)).await?;
        }
    }
    Ok(())
}

async fn publish_version(context: &Context, app: AppId, version: u64) {
    if let Err(error) = context.deps.limits.publish_version(app, version).await {
        // Caches notice by age at the latest.
        tracing::warn!(app.id = %app, error = %error_chain(&error), "a configuration change was not announced");
    }
}

fn at(record: &Record) -> UnixMillis {
    match record {
        Record::Accepted(accepted) => accepted.message.accepted_at,
        Record::Outcome(outcome) => outcome.at,
    }
}

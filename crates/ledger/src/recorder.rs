//! The recorder: journal in, rows out.
//!
//! A batch is what has arrived while the last one was written, so batches grow with load by themselves; while much
//! comes one also waits a moment to fill ([`fill`](crate::fill)). Frames are
//! acknowledged after the commit; a crash in between records them again, which changes nothing.
//!
//! With the store away the consumer is cancelled: the broker keeps the journal, another recorder may take over, and
//! nothing is held here. After that it goes on carefully ([`retreat`](crate::retreat)). A batch that the store refuses is
//! halved until the bad record stands alone; that one is parked with the reason, the others are recorded.
//!
//! What the store neither records nor parks keeps its frame unacknowledged, so the broker still has it, and the journal
//! goes on without it. It is tried again after [`Settings::held_retry`](crate::Settings::held_retry). With too many such
//! frames the journal stops in between: nothing is lost for the sake of going on.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use postrider_broker::{Incoming, Queue, Receipt, Subscription};
use postrider_model::{AppId, CancelReason, Next, Record, UnixMillis};
use postrider_store::{RecordReport, StoreError};
use postrider_wire::Frame;
use tokio::time::Instant;

use postrider_telemetry::error_chain;

use crate::Context;
use crate::fill::{self, Pace};
use crate::lag::made_at;
use crate::retreat::Retreat;

/// After so long without a frame the broker is asked whether the journal is empty.
const IDLE: Duration = Duration::from_secs(1);

pub(crate) async fn run(context: Arc<Context>) {
    let mut retreat = Retreat::default();
    while !context.stop.is_cancelled() {
        let subscription = context
            .deps
            .broker
            .subscribe(Queue::Journal, context.settings.journal_prefetch)
            .await;
        match subscription {
            Ok(subscription) => {
                context.lag.consuming();
                let ended = consume(&context, subscription, &mut retreat).await;
                context.lag.away();
                context.deps.metrics.journal_held(0);
                if ended.is_err() {
                    retreat.failed();
                    if !context.store_is_back(retreat.rest()).await {
                        return;
                    }
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
    /// Each frame's receipt, and where its records end.
    receipts: Vec<(Receipt, usize)>,
    bytes: usize,
    /// What it may have; a frame more may go over that.
    records_max: usize,
    bytes_max: usize,
    /// Somebody waits for one of them.
    is_urgent: bool,
}

/// Frames that nobody takes: not acknowledged before this subscription ends.
#[derive(Default)]
struct Held {
    receipts: Vec<Receipt>,
    since: Option<Instant>,
}

impl Held {
    fn keep(&mut self, context: &Context, receipt: Receipt, made_at: UnixMillis) {
        context.lag.held(made_at);
        self.receipts.push(receipt);
        self.since.get_or_insert_with(Instant::now);
        context.deps.metrics.journal_held(self.receipts.len());
    }

    /// Whether it is time to get the frames again, by a new subscription; waits for it when they are too many.
    async fn is_over(&self, context: &Context) -> bool {
        let Some(since) = self.since else { return false };
        let until = since + context.settings.held_retry;
        let most = usize::from(context.settings.journal_prefetch / 2).max(1);
        if self.receipts.len() >= most && until > Instant::now() {
            tracing::error!(
                frames = self.receipts.len(),
                "too much can be neither recorded nor parked; the journal stops for a while"
            );
            let rest = tokio::time::sleep_until(until);
            let _ = context.stop.run_until_cancelled(rest).await;
        }
        until <= Instant::now()
    }
}

async fn consume(
    context: &Context,
    mut subscription: Subscription,
    retreat: &mut Retreat,
) -> Result<(), StoreAway> {
    let mut held = Held::default();
    let mut pace = Pace::default();
    while !held.is_over(context).await {
        let first = tokio::select! {
            biased;
            () = context.stop.cancelled() => return Ok(()),
            first = subscription.next() => first,
            () = tokio::time::sleep(IDLE) => {
                context.lag.quiet();
                continue;
            }
        };
        let Some(first) = first else { return Ok(()) };
        let began = Instant::now();
        let mut batch = Batch {
            records_max: retreat.part_of(context.settings.batch_max_records),
            bytes_max: retreat.part_of(context.settings.batch_max_bytes),
            ..Batch::default()
        };
        take(context, &mut batch, &mut held, first).await?;
        context.lag.taken(&batch.records);
        // The publishers of a broker in memory wait for their records themselves.
        let until = (context.deps.broker.is_durable() && pace.is_busy(began)).then(|| began + fill::WAIT);
        take_more(context, &mut subscription, &mut batch, &mut held, until).await?;
        pace = Pace::after(began, batch.records.len());
        write(context, batch, &mut held).await?;
        retreat.written();
    }
    Ok(())
}

/// Takes what is there, and until `until` also what comes, as long as nobody waits for a record of the batch.
async fn take_more(
    context: &Context,
    subscription: &mut Subscription,
    batch: &mut Batch,
    held: &mut Held,
    until: Option<Instant>,
) -> Result<(), StoreAway> {
    // The broker hands out no more frames than this without an acknowledgement, which comes after the write.
    let frames_max = usize::from(context.settings.journal_prefetch / 2);
    while batch.records.len() < batch.records_max && batch.bytes < batch.bytes_max {
        let frame = match (subscription.try_next(), until) {
            (Some(frame), _) => frame,
            (None, Some(until)) if !batch.is_urgent && batch.receipts.len() < frames_max => {
                let next = tokio::select! {
                    biased;
                    () = context.stop.cancelled() => return Ok(()),
                    next = tokio::time::timeout_at(until, subscription.next()) => next,
                };
                // The end of the subscription is met again by whoever asks next.
                let Ok(Some(frame)) = next else { return Ok(()) };
                frame
            }
            (None, _) => return Ok(()),
        };
        take(context, batch, held, frame).await?;
    }
    Ok(())
}

/// Decodes a frame into the batch. What cannot be read is parked first, in the store, and so never lost.
async fn take(
    context: &Context,
    batch: &mut Batch,
    held: &mut Held,
    incoming: Incoming,
) -> Result<(), StoreAway> {
    batch.bytes += incoming.frame.len();
    let (reason, whole) = match postrider_wire::decode_partial(incoming.frame.clone()) {
        Ok((Frame::Journal(records), rejected)) => {
            batch.is_urgent |= records.iter().any(fill::is_urgent);
            batch.records.extend(records);
            let Some(bad) = rejected.first() else {
                batch.receipts.push((incoming.receipt, batch.records.len()));
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
    if park(context, whole, &reason, &incoming.frame).await? {
        batch.receipts.push((incoming.receipt, batch.records.len()));
    } else {
        held.keep(context, incoming.receipt, UnixMillis::now());
    }
    Ok(())
}

/// False when the store will not have it.
async fn park(
    context: &Context,
    kind: &'static str,
    reason: &str,
    bytes: &bytes::Bytes,
) -> Result<bool, StoreAway> {
    match context.deps.store.park(kind, reason, bytes).await {
        Ok(is_new) => {
            if is_new {
                context.deps.metrics.parked(kind);
            }
            Ok(true)
        }
        Err(error) if error.is_transient() => {
            tracing::warn!(error = %error_chain(&error), "the store is away; nothing can be parked");
            Err(StoreAway)
        }
        Err(error) => {
            tracing::error!(
                error = %error_chain(&error),
                "what cannot be handled cannot be parked either; the broker keeps it"
            );
            Ok(false)
        }
    }
}

async fn write(context: &Context, batch: Batch, held: &mut Held) -> Result<(), StoreAway> {
    let started = Instant::now();
    let unplaced = record(context, &batch.records, batch.records_max).await?;
    postrider_failpoint::hit("recorder.after_store");
    context.lag.written(&batch.records, UnixMillis::now());
    context
        .deps
        .metrics
        .recorder_batch(batch.records.len(), started.elapsed());
    let mut start = 0;
    let mut done = Vec::with_capacity(batch.receipts.len());
    for (receipt, end) in batch.receipts {
        let mut unplaced = unplaced.range(start..end);
        match unplaced.next() {
            Some(index) => held.keep(context, receipt, made_at(&batch.records[*index])),
            None => done.push(receipt),
        }
        start = end;
    }
    // False means that frames come back: they will be recorded again, which changes nothing.
    let _ = Receipt::acknowledge_all(done).await;
    context.ended.note(&batch.records);
    context.wake.notify_one();
    Ok(())
}

/// Records a batch; halves it when the store refuses it, down to the bad record. Iterative, oldest first, so that
/// the order of acceptance is kept. Returns which records are neither recorded nor parked. A frame may have brought more
/// than twice `most` records: these are written in parts.
async fn record(context: &Context, records: &[Record], most: usize) -> Result<BTreeSet<usize>, StoreAway> {
    let mut unplaced = BTreeSet::new();
    let size = most.saturating_mul(2);
    let mut parts: Vec<Range<usize>> = (0..records.len())
        .step_by(size)
        .rev()
        .map(|start| start..start.saturating_add(size).min(records.len()))
        .collect();
    while let Some(place) = parts.pop() {
        let part = &records[place.clone()];
        if part.is_empty() {
            continue;
        }
        match context.deps.store.record(part).await {
            Ok(report) => after(context, records, place, report, &mut unplaced).await?,
            Err(error) if error.is_transient() => {
                tracing::warn!(error = %error_chain(&error), "the store is away; the journal waits in the broker");
                return Err(StoreAway);
            }
            Err(error) => match part {
                [bad] => {
                    if !park_record(context, bad, &error).await? {
                        unplaced.insert(place.start);
                    }
                }
                _ => {
                    let middle = place.start + part.len() / 2;
                    parts.push(middle..place.end);
                    parts.push(place.start..middle);
                }
            },
        }
    }
    Ok(unplaced)
}

async fn park_record(context: &Context, record: &Record, error: &StoreError) -> Result<bool, StoreAway> {
    let reason = error_chain(error);
    tracing::error!(reason, "the store refuses a record; it is to be parked");
    park(
        context,
        "record",
        &reason,
        &postrider_wire::encode_journal(std::slice::from_ref(record)),
    )
    .await
}

/// What a recorded batch means for others.
async fn after(
    context: &Context,
    records: &[Record],
    place: Range<usize>,
    report: RecordReport,
    unplaced: &mut BTreeSet<usize>,
) -> Result<(), StoreAway> {
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
    for index in place {
        if let Record::Outcome(outcome) = &records[index]
            && outcome.next == Next::Cancelled(CancelReason::Parked)
        {
            let reason = format!("delivery {} came back to a worker too often", outcome.delivery);
            // A run may be journaled twice; but for the time of that it is the same, and parked once.
            let mut parked = outcome.clone();
            parked.at = parked.delivery.created_at();
            if !park(context, "job", &reason, &postrider_wire::encode_outcome(&parked)).await? {
                unplaced.insert(index);
            }
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

//! The recorder's batches: one transaction, a handful of statements over whole batches.
//!
//! Waiting rows are locked in id order. Deliveries are not: writing one checks that it still stands as it was read,
//! and when another recorder moved it meanwhile the batch starts again from what is there now.

mod endpoints;
pub(crate) mod load;
pub(crate) mod messages;
pub(crate) mod write;

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use postrider_model::{MessageId, Record, Trigger, UnixMillis};
use postrider_store::fold::{self, Changes, Known};
use postrider_store::{RecordReport, RecordStore, StoreError};

use crate::PostgresStore;
use crate::error::{Fail, Work};
use crate::schema::DAY_MS;

/// Times a batch starts again before the caller hears of it.
const STARTS: u32 = 5;

#[async_trait]
impl RecordStore for PostgresStore {
    async fn record(&self, batch: &[Record]) -> Result<RecordReport, StoreError> {
        if batch.is_empty() {
            return Ok(RecordReport::default());
        }
        // A unique name is only ever taken by a row that the batch did not know of; nobody waits for a name here.
        match self.writing(record(self, batch)).await {
            Err(StoreError::Conflict(name)) => {
                Err(StoreError::Rejected(Box::new(StoreError::Conflict(name))))
            }
            done => done,
        }
    }
}

async fn record(store: &PostgresStore, batch: &[Record]) -> Work<RecordReport> {
    let touched = fold::touched(batch);
    let sealed = seal(store, batch);
    let days = days(batch);
    let mut start = 1;
    loop {
        store.ensure_days(days.clone()).await?;
        match Box::pin(attempt(store, batch, &touched, &sealed)).await {
            Err(Fail::Again) if start < STARTS => {}
            Err(Fail::NoPartition) if start < STARTS => store.days.forget(),
            done => return done,
        }
        start += 1;
    }
}

async fn attempt(
    store: &PostgresStore,
    batch: &[Record],
    touched: &fold::Touched,
    sealed: &HashMap<MessageId, Vec<u8>>,
) -> Work<RecordReport> {
    let mut tx = store.write.begin().await?;
    let loaded = load::load(&mut tx, touched).await?;
    let mut changes = fold::fold(batch, &loaded.known, loaded.now, loaded.last_seq, store.fold);
    wake_late(batch, &loaded.known, loaded.now, &mut changes);
    let mut report = RecordReport {
        stale: changes.stale,
        messages: messages::write(&mut tx, &changes.messages, sealed).await?,
        ..RecordReport::default()
    };
    write::deliveries(&mut tx, &changes, &loaded.known).await?;
    report.attempts = write::attempts(&mut tx, &changes.attempts).await?;
    write::waiting(&mut tx, &changes, &loaded.known).await?;
    if touched.sequence && changes.last_seq != loaded.last_seq {
        write::sequence(&mut tx, changes.last_seq).await?;
    }
    endpoints::reconfigure(&mut tx, &changes, loaded.now, &mut report).await?;
    endpoints::wake(&mut tx, &changes, &loaded.known).await?;
    write::counters(&mut tx, &changes.counters).await?;
    endpoints::health(&mut tx, &changes.failing).await?;
    write::claims(&mut tx, &changes.claims, loaded.now).await?;
    tx.commit().await?;
    Ok(report)
}

/// Wakes endpoints for two changes that are no new rows: a message whose delivery waited for it, and the end of a
/// delivery that others of an `ordered` endpoint wait behind.
fn wake_late(batch: &[Record], known: &Known, now: UnixMillis, changes: &mut Changes) {
    let mut wake = |endpoint, app, due: UnixMillis| {
        changes
            .wake
            .entry(endpoint)
            .and_modify(|wake: &mut (_, UnixMillis)| wake.1 = wake.1.min(due))
            .or_insert((app, due));
    };
    for record in batch {
        let Record::Accepted(accepted) = record else {
            continue;
        };
        for delivery in &accepted.deliveries {
            if let Some(row) = known.deliveries.get(&delivery.id).and_then(|known| known.waiting) {
                wake(delivery.endpoint, accepted.message.app, row.due_at.max(now));
            }
        }
    }
    for (id, put) in &changes.waiting {
        let in_sequence = known
            .deliveries
            .get(id)
            .and_then(|known| known.waiting)
            .is_some_and(|row| row.seq > 0);
        if let (None, true, Some(delivery)) = (put, in_sequence, changes.deliveries.get(id)) {
            wake(delivery.endpoint, delivery.app, now);
        }
    }
}

/// Seals the payloads of the batch's new messages, before the transaction starts.
fn seal(store: &PostgresStore, batch: &[Record]) -> HashMap<MessageId, Vec<u8>> {
    batch
        .iter()
        .filter_map(|record| match record {
            Record::Accepted(accepted) if accepted.trigger == Trigger::Scheduled => Some(&accepted.message),
            _ => None,
        })
        .map(|message| (message.id, store.sealer.payload(message.id, &message.payload)))
        .collect()
}

/// The days that rows of the batch fall on.
fn days(batch: &[Record]) -> HashSet<i64> {
    let mut days = HashSet::new();
    for record in batch {
        match record {
            Record::Accepted(accepted) => {
                days.insert(day(accepted.message.id.created_at()));
                days.extend(
                    accepted
                        .deliveries
                        .iter()
                        .map(|delivery| day(delivery.id.created_at())),
                );
            }
            Record::Outcome(outcome) => {
                days.insert(day(outcome.delivery.created_at()));
                if let Some(attempt) = &outcome.attempt {
                    days.insert(day(attempt.id.created_at()));
                }
            }
        }
    }
    days
}

/// The day of a time.
pub(crate) fn day(at: UnixMillis) -> i64 {
    at.0.div_euclid(DAY_MS)
}

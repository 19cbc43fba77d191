//! The recorder's batches: one transaction, a handful of statements over whole batches.
//!
//! Waiting rows are locked in id order. Deliveries are not: writing one checks that it still stands as it was read,
//! and when another recorder moved it meanwhile the batch starts again from what is there now.
//!
//! Facts are new as a rule: then rows are inserted as such, without a look for each whether it is there. Where what
//! was read tells that some were recorded before, or an insert meets its row, the batch is written by statements that
//! pass over what is there.

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
use crate::error::{Fail, Work, code};
use crate::schema::DAY_MS;

/// Times a batch starts again before the caller hears of it.
const STARTS: u32 = 5;

/// How new rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// None of them is there, or the batch starts again.
    Quick,
    /// Passing over those that are there.
    Careful,
}

impl Way {
    /// Of a statement and the same with `ON CONFLICT DO NOTHING`, the one for this way.
    fn of(self, [quick, careful]: [&'static str; 2]) -> &'static str {
        match self {
            Self::Quick => quick,
            Self::Careful => careful,
        }
    }

    /// What a failed insert means: the quick way meets a row that is there.
    fn failed(self, error: sqlx::Error) -> Fail {
        match code(&error).as_deref() {
            Some("23505") if self == Self::Quick => Fail::Repeated,
            _ => error.into(),
        }
    }
}

/// An insert for [`Way::of`].
macro_rules! insert {
    ($($part:literal),+) => {
        [concat!($($part),+), concat!($($part,)+ " ON CONFLICT DO NOTHING")]
    };
}
pub(crate) use insert;

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
    let mut way = Way::Quick;
    loop {
        store.ensure_days(days.clone()).await?;
        match Box::pin(attempt(store, batch, &touched, &sealed, way)).await {
            Err(Fail::Again) if start < STARTS => {}
            Err(Fail::Repeated) if start < STARTS => way = Way::Careful,
            Err(Fail::NoPartition) if start < STARTS => {
                // What was made anew since and is still missing cannot be made.
                if start > 1 {
                    store.refuse_leaving(&days).await?;
                }
                store.days.forget();
            }
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
    way: Way,
) -> Work<RecordReport> {
    let mut tx = store.write.begin().await?;
    let loaded = load::load(&mut tx, touched).await?;
    let mut changes = fold::fold(batch, &loaded.known, loaded.now, loaded.last_seq, store.fold);
    wake_late(batch, &loaded.known, loaded.now, &mut changes);
    let way = if may_repeat(batch, &loaded.known) {
        Way::Careful
    } else {
        way
    };
    let mut report = RecordReport {
        stale: changes.stale,
        messages: messages::write(&mut tx, &changes.messages, sealed, way).await?,
        ..RecordReport::default()
    };
    write::deliveries(&mut tx, &changes, &loaded.known, way).await?;
    report.attempts = write::attempts(&mut tx, &changes.attempts, way).await?;
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

/// Whether what the store has tells that facts of the batch were recorded before, which the quick way would find out late.
fn may_repeat(batch: &[Record], known: &Known) -> bool {
    batch.iter().any(|record| match record {
        Record::Accepted(accepted) => accepted
            .deliveries
            .iter()
            .any(|delivery| known.deliveries.contains_key(&delivery.id)),
        Record::Outcome(outcome) => {
            outcome.attempt.is_some()
                && known
                    .deliveries
                    .get(&outcome.delivery)
                    .is_some_and(|known| known.attempts >= outcome.attempts)
        }
    })
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
        let had = known.deliveries.get(id).and_then(|known| known.waiting);
        let (None, Some(had), Some(delivery)) = (put, had, changes.deliveries.get(id)) else {
            continue;
        };
        let endpoint = known.endpoints.get(&delivery.endpoint);
        if had.seq > 0 || endpoint.is_some_and(|known| known.ordered) {
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

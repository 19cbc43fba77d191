//! When a batch of the journal waits to fill.
//!
//! A large batch costs the store a fraction of what small ones do, and a message and its outcome that meet in one are
//! written once. So from some fifty messages a second on a batch waits a moment, unless somebody waits for one of its
//! records. While less comes nothing waits.

use std::time::Duration;

use postrider_model::{Disposition, Record, Trigger};
use tokio::time::Instant;

/// How long a batch may wait. Far less than what a read of a message that was just sent waits for its record.
pub(crate) const WAIT: Duration = Duration::from_millis(30);
/// Records a second, two for most messages, from which on a batch waits: to gain, it must get more than one message.
const FROM_RATE: f64 = 100.0;

/// The last batch: when it began, and its records.
#[derive(Debug, Default)]
pub(crate) struct Pace(Option<(Instant, usize)>);

impl Pace {
    /// After a batch of so many records that began then.
    pub(crate) fn after(began: Instant, records: usize) -> Self {
        Self(Some((began, records)))
    }

    /// Whether so much came since the last batch began that one that begins now is worth a wait.
    pub(crate) fn is_busy(&self, now: Instant) -> bool {
        self.0.is_some_and(|(began, records)| {
            let records = f64::from(u32::try_from(records).unwrap_or(u32::MAX));
            records >= FROM_RATE * (now - began).as_secs_f64()
        })
    }
}

/// Whether somebody waits for this record: the scheduler, which hands out what waits in the store, or who asked for a
/// manual delivery.
pub(crate) fn is_urgent(record: &Record) -> bool {
    match record {
        Record::Accepted(accepted) => {
            accepted.trigger == Trigger::Manual
                || accepted
                    .deliveries
                    .iter()
                    .any(|delivery| delivery.disposition != Disposition::Queued)
        }
        // The next of an `ordered` endpoint goes when its run has ended.
        Record::Outcome(outcome) => outcome.run > 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_waits_only_while_much_comes() {
        let began = Instant::now();
        let after = |millis| began + Duration::from_millis(millis);
        assert!(!Pace::default().is_busy(began), "nothing came yet");
        let pace = Pace::after(began, 40);
        assert!(pace.is_busy(after(390)));
        assert!(!pace.is_busy(after(410)));
        assert!(
            !Pace::after(began, 2).is_busy(after(30)),
            "one request and its outcome at a time, each waiting for its record"
        );
    }
}

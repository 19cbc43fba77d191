//! How the recorder treats a store that answers and yet does not take its batch.
//!
//! A store that is away is waited for and then does as before. One that is too slow for the batch (its statement runs out
//! of time), or reads and cannot write (a full disk, a replica), would get the same batch again and again, and the broker
//! would hand out the same frames several times a second. So after each failure batches are half as large and the rest
//! before the next one twice as long; each batch that is written takes one such step back.

use std::time::Duration;

/// Rest after the first failure.
const REST: Duration = Duration::from_millis(100);
/// A batch is divided by two to this at most: 2,048. The rest is 12.8 s at most.
const STEPS_MAX: u32 = 11;
const REST_STEPS_MAX: u32 = 7;

/// How far the recorder has stepped back; it outlives subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Retreat {
    steps: u32,
}

impl Retreat {
    /// The store did not take a batch.
    pub(crate) fn failed(&mut self) {
        self.steps = (self.steps + 1).min(STEPS_MAX);
    }

    /// The store took a batch.
    pub(crate) fn written(&mut self) {
        self.steps = self.steps.saturating_sub(1);
    }

    /// How much a batch may have now, of what it may have otherwise; at least 1.
    pub(crate) fn part_of(&self, max: usize) -> usize {
        (max >> self.steps).max(1)
    }

    /// The rest before the store is tried again.
    pub(crate) fn rest(&self) -> Duration {
        REST * (1 << self.steps.saturating_sub(1).min(REST_STEPS_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_halves_batches_and_doubles_rests_and_each_batch_takes_a_step_back() {
        let mut retreat = Retreat::default();
        assert_eq!((retreat.part_of(2_000), retreat.rest()), (2_000, REST));
        let failed = |retreat: &mut Retreat| {
            retreat.failed();
            (retreat.part_of(2_000), retreat.rest().as_millis())
        };
        assert_eq!(failed(&mut retreat), (1_000, 100));
        assert_eq!(failed(&mut retreat), (500, 200));
        retreat.written();
        assert_eq!(retreat.part_of(2_000), 1_000);
        assert_eq!(failed(&mut retreat), (500, 200));
        for _ in 0..100 {
            failed(&mut retreat);
        }
        assert_eq!(failed(&mut retreat), (1, 12_800), "both have an end");
        for _ in 0..STEPS_MAX {
            retreat.written();
        }
        assert_eq!(retreat.part_of(2_000), 2_000);
    }
}

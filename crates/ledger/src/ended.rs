//! Endpoints of which leases have ended, from this process's recorder to its scheduler.

use std::collections::HashSet;

use parking_lot::Mutex;
use postrider_model::{EndpointId, Next, Record};

/// Most endpoints that are remembered between two rounds; the others are looked at a little later.
const ENDPOINTS_MAX: usize = 10_000;

/// Endpoints that outcomes were recorded for since the last round.
#[derive(Debug, Default)]
pub(crate) struct Ended(Mutex<HashSet<EndpointId>>);

impl Ended {
    /// Remembers whose runs these records end.
    pub(crate) fn note(&self, records: &[Record]) {
        let mut ended = self.0.lock();
        for record in records {
            if let Record::Outcome(outcome) = record
                && !matches!(outcome.next, Next::InFlight { .. })
                && ended.len() < ENDPOINTS_MAX
            {
                ended.insert(outcome.endpoint);
            }
        }
    }

    /// Takes what was remembered.
    pub(crate) fn take(&self) -> Vec<EndpointId> {
        self.0.lock().drain().collect()
    }
}

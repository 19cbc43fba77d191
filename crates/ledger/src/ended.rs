//! Endpoints of which leases have ended, from this process's recorder to its scheduler.
//!
//! A full endpoint is looked at again when a part of its leases has ended, or a little after the first of them: a look
//! for each one would cost more than it gives.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use postrider_model::{EndpointId, Next, Record};
use tokio::time::Instant;

/// Most endpoints that are remembered between two rounds; the others are looked at a little later.
const ENDPOINTS_MAX: usize = 10_000;

/// Leases of one endpoint that ended.
#[derive(Clone, Copy, Debug)]
struct Leases {
    count: u32,
    since: Instant,
}

/// Endpoints that outcomes were recorded for.
#[derive(Debug, Default)]
pub(crate) struct Ended(Mutex<HashMap<EndpointId, Leases>>);

impl Ended {
    /// Remembers whose runs these records end.
    pub(crate) fn note(&self, records: &[Record]) {
        let now = Instant::now();
        let mut ended = self.0.lock();
        for record in records {
            if let Record::Outcome(outcome) = record
                && !matches!(outcome.next, Next::InFlight { .. })
                && (ended.len() < ENDPOINTS_MAX || ended.contains_key(&outcome.endpoint))
            {
                let first = Leases { count: 0, since: now };
                ended.entry(outcome.endpoint).or_insert(first).count += 1;
            }
        }
    }

    /// Takes the endpoints of which so many have ended, or the first one so long ago.
    pub(crate) fn take(&self, enough: u32, after: Duration) -> Vec<EndpointId> {
        let now = Instant::now();
        let mut ended = self.0.lock();
        let ready = |leases: &Leases| leases.count >= enough || now.duration_since(leases.since) >= after;
        ended
            .extract_if(|_, leases| ready(leases))
            .map(|(endpoint, _)| endpoint)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use postrider_model::{AppId, DeliveryId, MessageId, Outcome, Trigger, UnixMillis};

    use super::*;

    fn delivered(endpoint: EndpointId) -> Record {
        let message = MessageId::generate(UnixMillis(1), &mut rand::rng());
        Record::Outcome(Box::new(Outcome {
            delivery: DeliveryId::derive(message, endpoint),
            message,
            endpoint,
            app: AppId::floor(UnixMillis(1)),
            run: 1,
            attempts: 1,
            trigger: Trigger::Scheduled,
            at: UnixMillis(1),
            attempt: None,
            next: Next::Delivered,
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_come_when_enough_has_ended_or_some_time_ago() {
        const AFTER: Duration = Duration::from_millis(100);
        let ended = Ended::default();
        let [busy, slow] = [1, 2].map(|n| EndpointId::floor(UnixMillis(n)));
        ended.note(&[delivered(busy), delivered(slow), delivered(busy)]);
        assert_eq!(ended.take(2, AFTER), [busy]);
        assert_eq!(ended.take(2, AFTER), []);
        tokio::time::advance(AFTER).await;
        assert_eq!(ended.take(2, AFTER), [slow]);
        assert_eq!(ended.take(1, Duration::ZERO), []);
    }
}

//! How far the journal is behind: the age of its oldest record that is not written down.
//!
//! The recorder tells what it takes and what it wrote; the time of what it holds grows while it is stuck, and stays
//! known while the store is away and the broker has the frames back. Who does not consume asks the broker whether
//! anything is left, and whether another recorder works on it. With the broker away nothing can be asked: what was
//! known is told.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use postrider_broker::{Health, Queue, QueueLook};
use postrider_model::{Record, UnixMillis};

use crate::Context;

/// Time between two samples.
const EVERY: Duration = Duration::from_secs(1);
/// Longest look at the broker.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// A recorder that wrote so recently is the active one.
const ACTIVE_FOR: Duration = Duration::from_secs(10);
/// The journal is current below this.
const CURRENT: Duration = Duration::from_secs(60);
/// Samples after which a consumer of the journal is surely not the one that was cancelled here.
const SURE: u8 = 2;

/// What this process knows of the journal's age.
#[derive(Debug, Default)]
pub(crate) struct Lag(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    is_consuming: bool,
    /// Time of the oldest record that was taken and is not written.
    head: Option<UnixMillis>,
    /// The same of what can neither be written nor parked.
    held: Option<UnixMillis>,
    /// The oldest that a record was when it was written, since the last sample.
    worst: Duration,
    /// Time of the newest record that was written, and when that was.
    written: Option<(UnixMillis, UnixMillis)>,
    /// Samples in a row in which another consumer was there.
    others: u8,
    /// The last sample.
    age: Duration,
}

/// When a record was made.
pub(crate) fn made_at(record: &Record) -> UnixMillis {
    match record {
        Record::Accepted(accepted) => accepted.message.accepted_at,
        Record::Outcome(outcome) => outcome.at,
    }
}

fn earlier(one: Option<UnixMillis>, other: Option<UnixMillis>) -> Option<UnixMillis> {
    one.into_iter().chain(other).min()
}

impl Lag {
    /// This recorder consumes: frames that were held are with the broker again.
    pub(crate) fn consuming(&self) {
        let mut state = self.0.lock();
        state.is_consuming = true;
        state.held = None;
    }

    /// It does not: the broker has its frames back.
    pub(crate) fn away(&self) {
        let mut state = self.0.lock();
        state.is_consuming = false;
        state.head = earlier(state.head, state.held.take());
        state.others = 0;
    }

    /// A batch begins with these records: the journal's oldest, as it hands them out in order.
    pub(crate) fn taken(&self, records: &[Record]) {
        if let Some(oldest) = records.iter().map(made_at).min() {
            self.0.lock().head = Some(oldest);
        }
    }

    /// A batch was written.
    pub(crate) fn written(&self, records: &[Record], now: UnixMillis) {
        let mut state = self.0.lock();
        state.head = None;
        if let Some(oldest) = records.iter().map(made_at).min() {
            state.worst = state.worst.max(now.since(oldest));
        }
        if let Some(newest) = records.iter().map(made_at).max() {
            state.written = Some((newest, now));
        }
    }

    /// This record is kept unacknowledged, as nobody takes it.
    pub(crate) fn held(&self, record: UnixMillis) {
        let mut state = self.0.lock();
        state.held = earlier(state.held, Some(record));
    }

    /// Nothing came for a while although the broker is up: the journal is empty, or another recorder has it.
    pub(crate) fn quiet(&self) {
        self.0.lock().head = None;
    }

    /// The age now. `look` is what the broker says of the journal, where it was asked.
    fn sample(&self, look: Option<QueueLook>, now: UnixMillis) -> Duration {
        let mut state = self.0.lock();
        if let (false, Some(look)) = (state.is_consuming, look) {
            state.others = if look.consumers > 0 {
                state.others.saturating_add(1)
            } else {
                0
            };
            if look.depth == 0 || state.others >= SURE {
                state.head = None;
            } else if state.head.is_none() && look.consumers == 0 {
                state.head = Some(state.written.map_or(now, |(newest, _)| newest));
            }
        }
        let unwritten = earlier(state.head, state.held).map_or(Duration::ZERO, |oldest| now.since(oldest));
        state.age = unwritten.max(std::mem::take(&mut state.worst));
        state.age
    }

    /// Whether this recorder is at work and close behind.
    fn is_close(&self, now: UnixMillis) -> bool {
        let state = self.0.lock();
        let is_active = state.written.is_some_and(|(_, at)| now.since(at) < ACTIVE_FOR);
        state.is_consuming && is_active && state.age < CURRENT
    }
}

/// Tells the metric, once a second.
pub(crate) async fn run(context: Arc<Context>) {
    while !context.stopped_within(EVERY).await {
        let is_consuming = context.lag.0.lock().is_consuming;
        let look = if is_consuming { None } else { look(&context).await };
        let age = context.lag.sample(look, UnixMillis::now());
        context.deps.metrics.journal_lag(age);
    }
}

/// Whether whatever was journaled a while ago has been written: nobody needs to wait for it any longer.
pub(crate) async fn is_current(context: &Context) -> bool {
    context.lag.is_close(UnixMillis::now()) || look(context).await.is_some_and(|look| look.depth == 0)
}

async fn look(context: &Context) -> Option<QueueLook> {
    if *context.deps.broker.health().borrow() == Health::Down {
        return None;
    }
    let look = context.deps.broker.look(Queue::Journal);
    tokio::time::timeout(LOOK_LIMIT, look).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use postrider_model::{AppId, DeferReason, DeliveryId, EndpointId, MessageId, Next, Outcome, Trigger};

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn ago(seconds: u64) -> UnixMillis {
        NOW.minus(Duration::from_secs(seconds))
    }

    fn made(at: UnixMillis) -> Record {
        let mut rng = rand::rng();
        let (message, endpoint) = (
            MessageId::generate(at, &mut rng),
            EndpointId::generate(at, &mut rng),
        );
        Record::Outcome(Box::new(Outcome {
            delivery: DeliveryId::derive(message, endpoint),
            message,
            endpoint,
            app: AppId::generate(at, &mut rng),
            run: 0,
            attempts: 0,
            trigger: Trigger::Scheduled,
            at,
            attempt: None,
            next: Next::Deferred {
                reason: DeferReason::Ours,
                delay: Duration::ZERO,
            },
        }))
    }

    fn seen(depth: u64, consumers: u32) -> Option<QueueLook> {
        Some(QueueLook { depth, consumers })
    }

    fn age(lag: &Lag, look: Option<QueueLook>) -> u64 {
        lag.sample(look, NOW).as_secs()
    }

    #[test]
    fn a_batch_that_is_not_written_gets_older() {
        let lag = Lag::default();
        lag.consuming();
        assert_eq!(age(&lag, None), 0);
        lag.taken(&[made(ago(40)), made(ago(50)), made(ago(30))]);
        assert_eq!(age(&lag, None), 50);
        assert_eq!(lag.sample(None, NOW.plus(Duration::from_secs(9))).as_secs(), 59);
        lag.written(&[made(ago(50)), made(ago(30))], NOW);
        assert_eq!(age(&lag, None), 50, "so old it was when it was written");
        assert_eq!(age(&lag, None), 0);
    }

    #[test]
    fn what_went_back_to_the_broker_is_not_forgotten() {
        let lag = Lag::default();
        lag.consuming();
        lag.taken(&[made(ago(50))]);
        lag.away();
        assert_eq!(age(&lag, None), 50, "the broker does not say");
        assert_eq!(
            age(&lag, seen(3, 1)),
            50,
            "perhaps the consumer that was cancelled just now"
        );
        assert_eq!(age(&lag, seen(3, 0)), 50);
        assert_eq!(age(&lag, seen(3, 1)), 50);
        assert_eq!(age(&lag, seen(3, 1)), 0, "another one has it");
    }

    #[test]
    fn a_journal_that_nobody_consumes_is_as_old_as_the_last_record() {
        let lag = Lag::default();
        lag.consuming();
        lag.written(&[made(ago(70)), made(ago(60))], ago(58));
        assert_eq!(age(&lag, None), 12);
        lag.away();
        assert_eq!(age(&lag, seen(0, 0)), 0, "nothing is in it");
        assert_eq!(age(&lag, seen(5, 0)), 60);
        lag.consuming();
        lag.quiet();
        assert_eq!(age(&lag, None), 0);
    }

    #[test]
    fn what_nobody_takes_is_not_written() {
        let lag = Lag::default();
        lag.consuming();
        lag.held(ago(90));
        lag.written(&[made(ago(1))], NOW);
        assert_eq!(age(&lag, None), 90);
        lag.quiet();
        assert_eq!(age(&lag, None), 90);
        lag.away();
        assert_eq!(age(&lag, None), 90);
    }

    #[test]
    fn only_the_active_recorder_is_close() {
        let lag = Lag::default();
        lag.consuming();
        assert!(!lag.is_close(NOW), "it stands by, for all it knows");
        lag.written(&[made(ago(1))], NOW);
        assert!(lag.is_close(NOW));
        assert!(!lag.is_close(NOW.plus(ACTIVE_FOR)));
        lag.held(ago(90));
        assert_eq!(age(&lag, None), 90);
        assert!(!lag.is_close(NOW));
    }
}

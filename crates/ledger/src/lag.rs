//! How far the journal is behind: the age of its oldest record that is not written down.
//!
//! The recorder tells what it takes and what it wrote; the time of what it holds grows while it is stuck, and stays
//! known while the store is away and the broker has the frames back. Who gets nothing (it does not consume, stands by, or
//! there is nothing) asks the broker whether anything is left, and whether another recorder works on it. With the broker
//! away nothing can be asked: what was known is told.
//!
//! The scheduler asks too: an outcome that is not written may be that of a lease which has ended, so leases are out for as
//! much longer ([`Lag::of_leases`]).

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
    /// It got something since it consumes: the journal has one active consumer at a time.
    is_active: bool,
    /// It got nothing for a while.
    is_quiet: bool,
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
    /// What was journaled before this was written, but for what is held; `None` while that is not known.
    written_to: Option<UnixMillis>,
    /// When the broker last had records that this recorder was not handed.
    elsewhere: Option<UnixMillis>,
}

impl State {
    /// Notes up to when everything is written, by what this recorder took and wrote, of which the oldest is `known`. One
    /// that gets nothing goes by what the broker has, and for a while after: another may still be writing it.
    fn note_written(&mut self, look: Option<QueueLook>, known: Duration, now: UnixMillis) {
        let is_at_work = self.is_consuming && self.is_active && !self.is_quiet;
        if !is_at_work {
            let Some(look) = look else { return };
            // A broker in memory counts what is held, too.
            if look.depth > 0 && self.held.is_none() {
                self.elsewhere = Some(now);
            }
            if self.elsewhere.is_some_and(|at| now.since(at) < ACTIVE_FOR) {
                self.written_to = None;
                return;
            }
        }
        self.written_to = Some(now.minus(known));
    }
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
        (state.is_consuming, state.is_active, state.is_quiet) = (true, false, false);
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
        let mut state = self.0.lock();
        (state.is_active, state.is_quiet) = (true, false);
        if let Some(oldest) = records.iter().map(made_at).min() {
            state.head = Some(oldest);
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

    /// Nothing came for a while: the journal is empty, another recorder has it, or the broker hands nothing out.
    pub(crate) fn quiet(&self) {
        self.0.lock().is_quiet = true;
    }

    /// Whether a look at the broker should come with the next sample.
    fn wants_look(&self) -> bool {
        let state = self.0.lock();
        !state.is_consuming || state.is_quiet
    }

    /// The age now. `look` is what the broker says of the journal, where it was asked.
    fn sample(&self, look: Option<QueueLook>, now: UnixMillis) -> Duration {
        let mut state = self.0.lock();
        if let Some(look) = look
            && (!state.is_consuming || state.is_quiet)
        {
            state.others = if look.consumers > 0 {
                state.others.saturating_add(1)
            } else {
                0
            };
            // Quiet, it is itself one of those consumers, and was not cancelled.
            let is_taken_care_of = state.others >= if state.is_consuming { 1 } else { SURE };
            if look.depth == 0 || is_taken_care_of {
                state.head = None;
            } else if state.head.is_none() && look.consumers == 0 {
                state.head = Some(state.written.map_or(now, |(newest, _)| newest));
            }
        }
        let age_of = |oldest: Option<UnixMillis>| oldest.map_or(Duration::ZERO, |oldest| now.since(oldest));
        let known = age_of(state.head).max(std::mem::take(&mut state.worst));
        state.note_written(look, known, now);
        state.age = known.max(age_of(state.held));
        state.age
    }

    /// For how long leases are out after their end: as long as the journal is behind, where that is more than `most`; for
    /// ever while it is not known, which another recorder's process does.
    pub(crate) fn of_leases(&self, most: Duration, now: UnixMillis) -> Duration {
        let behind = match self.0.lock().written_to {
            Some(written_to) => now.since(written_to),
            None => Duration::MAX,
        };
        if behind > most { behind } else { Duration::ZERO }
    }

    /// Whether this recorder is at work and close behind.
    fn is_close(&self, now: UnixMillis) -> bool {
        let state = self.0.lock();
        let is_active = state.written.is_some_and(|(_, at)| now.since(at) < ACTIVE_FOR);
        state.is_consuming && is_active && state.age < CURRENT
    }

    /// Whether nothing is left that is not written, by a look at the broker. A depth that leaves out what a recorder has taken
    /// says so only to the recorder that takes, when it holds nothing.
    fn is_drained(&self, look: QueueLook, depth_has_taken: bool) -> bool {
        let state = self.0.lock();
        let takes = state.is_consuming && (state.is_active || look.consumers <= 1);
        let holds = state.head.is_some() || state.held.is_some();
        look.depth == 0 && (depth_has_taken || (takes && !holds))
    }
}

/// Tells the metric, once a second.
pub(crate) async fn run(context: Arc<Context>) {
    while !context.stopped_within(EVERY).await {
        let look = if context.lag.wants_look() {
            look(&context).await
        } else {
            None
        };
        let age = context.lag.sample(look, UnixMillis::now());
        context.deps.metrics.journal_lag(age);
    }
}

/// Whether whatever was journaled a while ago has been written: nobody needs to wait for it any longer.
pub(crate) async fn is_current(context: &Context) -> bool {
    let depth_has_taken = !context.deps.broker.is_durable();
    context.lag.is_close(UnixMillis::now())
        || look(context)
            .await
            .is_some_and(|look| context.lag.is_drained(look, depth_has_taken))
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
        assert_eq!(age(&lag, seen(5, 0)), 60, "something may come yet");
        lag.quiet();
        assert_eq!(age(&lag, None), 60, "the broker does not say");
        assert_eq!(age(&lag, seen(5, 0)), 60, "the broker hands nothing out");
        assert_eq!(age(&lag, seen(5, 1)), 0, "another one has it");
        lag.taken(&[made(ago(50))]);
        assert_eq!(age(&lag, seen(0, 1)), 50);
    }

    #[test]
    fn an_empty_queue_is_no_proof_while_something_is_held() {
        let look = |consumers| QueueLook { depth: 0, consumers };
        let lag = Lag::default();
        assert!(
            !lag.is_drained(look(1), false),
            "another recorder may hold what it took"
        );
        assert!(lag.is_drained(look(1), true), "here the depth has that too");
        lag.consuming();
        assert!(!lag.is_drained(look(2), false), "it may stand by");
        assert!(lag.is_drained(look(1), false));
        lag.taken(&[made(ago(50))]);
        assert!(!lag.is_drained(look(1), false));
        lag.written(&[made(ago(50))], NOW);
        assert!(lag.is_drained(look(2), false));
        lag.held(ago(90));
        assert!(!lag.is_drained(look(1), false));
        assert!(!lag.is_drained(
            QueueLook {
                depth: 1,
                consumers: 1
            },
            true
        ));
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
    fn leases_are_out_for_longer_while_the_journal_is_behind() {
        const MOST: Duration = Duration::from_secs(45);
        let lag = Lag::default();
        assert_eq!(lag.of_leases(MOST, NOW), Duration::MAX, "nothing is known yet");
        lag.consuming();
        lag.taken(&[made(ago(50))]);
        lag.sample(None, NOW);
        assert_eq!(lag.of_leases(MOST, NOW), Duration::from_secs(50));
        let later = NOW.plus(Duration::from_secs(2));
        assert_eq!(lag.of_leases(MOST, later), Duration::from_secs(52));
        lag.written(&[made(ago(50))], NOW);
        lag.taken(&[made(ago(40))]);
        lag.sample(None, NOW);
        assert_eq!(lag.of_leases(MOST, NOW), Duration::from_secs(50), "a moment ago");
        lag.sample(None, NOW);
        assert_eq!(lag.of_leases(MOST, NOW), Duration::ZERO, "close enough");
        lag.written(&[made(ago(40))], NOW);
        lag.held(ago(900));
        lag.sample(None, NOW);
        assert_eq!(lag.sample(None, NOW), Duration::from_secs(900));
        assert_eq!(
            lag.of_leases(MOST, NOW),
            Duration::ZERO,
            "nobody knows when it is written"
        );
        lag.quiet();
        lag.sample(seen(1, 1), NOW);
        assert_eq!(lag.of_leases(MOST, NOW), Duration::ZERO);
    }

    #[test]
    fn a_recorder_that_stands_by_goes_by_what_the_broker_has() {
        const MOST: Duration = Duration::from_secs(45);
        let lag = Lag::default();
        lag.consuming();
        lag.quiet();
        lag.sample(None, NOW);
        assert_eq!(lag.of_leases(MOST, NOW), Duration::MAX, "the broker does not say");
        lag.sample(seen(0, 2), NOW);
        assert_eq!(lag.of_leases(MOST, NOW), Duration::ZERO);
        lag.sample(seen(3, 2), NOW);
        assert_eq!(lag.of_leases(MOST, NOW), Duration::MAX);
        lag.sample(seen(0, 2), NOW);
        assert_eq!(
            lag.of_leases(MOST, NOW),
            Duration::MAX,
            "perhaps handed out just now"
        );
        let later = NOW.plus(ACTIVE_FOR);
        lag.sample(seen(0, 2), later);
        assert_eq!(lag.of_leases(MOST, later), Duration::ZERO);
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

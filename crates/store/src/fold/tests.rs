use std::sync::Arc;

use bytes::Bytes;
use postrider_model::*;
use proptest::prelude::*;
use rand::SeedableRng;

use super::*;

const NOW: UnixMillis = UnixMillis(1_763_700_000_000);
const SETTINGS: FoldSettings = FoldSettings {
    disable_after: Duration::from_secs(5 * 24 * 3600),
};

struct World {
    app: AppId,
    endpoint: EndpointId,
    message: Arc<Message>,
    delivery: DeliveryId,
    rng: rand::rngs::StdRng,
}

impl World {
    fn new() -> Self {
        let mut rng = rand::rngs::StdRng::seed_from_u64(3);
        let app = AppId::generate(NOW, &mut rng);
        let endpoint = EndpointId::generate(NOW, &mut rng);
        let message = Arc::new(Message {
            id: MessageId::generate(NOW, &mut rng),
            app,
            event_type: "invoice.paid".into(),
            event_id: None,
            channels: vec![],
            content_type: "application/json".into(),
            payload: Bytes::from_static(b"{}"),
            accepted_at: NOW,
            payload_retention_days: None,
            traceparent: None,
        });
        let delivery = DeliveryId::derive(message.id, endpoint);
        Self {
            app,
            endpoint,
            message,
            delivery,
            rng,
        }
    }

    fn accepted(&self, disposition: Disposition) -> Record {
        Record::Accepted(Accepted {
            message: self.message.clone(),
            deliveries: vec![NewDelivery {
                id: self.delivery,
                endpoint: self.endpoint,
                disposition,
            }],
            trigger: Trigger::Scheduled,
            claims: vec![],
        })
    }

    fn outcome(&mut self, run: u32, attempts: u32, next: Next) -> Record {
        let class = match next {
            Next::Delivered => Some(AttemptClass::Success),
            Next::Retry { .. } | Next::Exhausted { .. } => Some(AttemptClass::Status),
            _ => None,
        };
        let attempt = class.map(|class| Attempt {
            id: AttemptId::generate(NOW, &mut self.rng),
            started_at: NOW,
            duration: Duration::from_millis(5),
            class,
            status: if class == AttemptClass::Success { 200 } else { 500 },
            response: Bytes::new(),
            url: "http://127.0.0.1/".into(),
        });
        Record::Outcome(Box::new(Outcome {
            delivery: self.delivery,
            message: self.message.id,
            endpoint: self.endpoint,
            app: self.app,
            run,
            attempts,
            trigger: Trigger::Scheduled,
            at: NOW,
            attempt,
            next,
        }))
    }

    fn known(&self, state: DeliveryState, waiting: Option<(u32, Option<UnixMillis>)>) -> Known {
        let waiting = waiting.map(|(run, leased_at)| KnownWaiting {
            run,
            due_at: NOW,
            leased_at,
            seq: 0,
        });
        let mut known = Known::default();
        known.deliveries.insert(
            self.delivery,
            KnownDelivery {
                state,
                attempts: 1,
                waiting,
            },
        );
        known.endpoints.insert(self.endpoint, KnownEndpoint::default());
        known
    }
}

const RETRY: Next = Next::Retry {
    delay: Duration::from_secs(5),
};

#[test]
fn accepted_and_delivered_in_one_batch_leaves_no_waiting_row() {
    let mut world = World::new();
    let batch = [
        world.accepted(Disposition::Leased),
        world.outcome(0, 1, Next::Delivered),
    ];
    let changes = fold(&batch, &Known::default(), NOW, 0, SETTINGS);
    assert!(changes.waiting.is_empty());
    assert_eq!(
        changes.deliveries[&world.delivery].state,
        DeliveryState::Delivered
    );
    let counts = changes.counters.values().next().copied().unwrap();
    assert_eq!(
        counts,
        StateCounts {
            delivered: 1,
            ..StateCounts::default()
        }
    );
}

#[test]
fn an_outcome_before_its_message_makes_the_delivery() {
    let mut world = World::new();
    let batch = [world.outcome(0, 1, RETRY), world.accepted(Disposition::Queued)];
    let changes = fold(&batch, &Known::default(), NOW, 0, SETTINGS);
    assert_eq!(changes.deliveries[&world.delivery].state, DeliveryState::Retrying);
    assert_eq!(
        changes.waiting[&world.delivery].map(|row| row.reason),
        Some(DeferReason::Retry)
    );
    assert_eq!(changes.messages.len(), 1);
}

#[test]
fn a_stale_outcome_adds_its_attempt_and_nothing_else() {
    let mut world = World::new();
    let known = world.known(DeliveryState::Retrying, Some((2, Some(NOW))));
    let exhausted = Next::Exhausted { gone: false };
    for next in [RETRY, exhausted, Next::Cancelled(CancelReason::Parked)] {
        let has_attempt = usize::from(!matches!(next, Next::Cancelled(_)));
        let changes = fold(&[world.outcome(1, 2, next)], &known, NOW, 0, SETTINGS);
        assert_eq!((changes.stale, changes.attempts.len()), (1, has_attempt));
        assert!(changes.waiting.is_empty() && changes.counters.is_empty());
        assert_eq!(changes.deliveries[&world.delivery].state, DeliveryState::Retrying);
    }
}

#[test]
fn a_success_of_an_earlier_run_ends_the_delivery() {
    let mut world = World::new();
    let mut known = world.known(DeliveryState::Retrying, Some((2, Some(NOW))));
    known
        .endpoints
        .get_mut(&world.endpoint)
        .unwrap()
        .pause_when_exhausted = true;
    let delivered = world.outcome(1, 2, Next::Delivered);
    let exhausted = world.outcome(2, 3, Next::Exhausted { gone: false });
    let retried = world.outcome(2, 3, RETRY);
    let batches = [
        (vec![delivered.clone(), exhausted], 1),
        (vec![delivered.clone(), retried.clone()], 1),
        (vec![retried, delivered], 0),
    ];
    for (batch, stale) in batches {
        let changes = fold(&batch, &known, NOW, 0, SETTINGS);
        assert_eq!((changes.stale, changes.attempts.len()), (stale, 2));
        let put = changes.deliveries[&world.delivery];
        assert_eq!((put.state, put.attempts), (DeliveryState::Delivered, 3));
        assert_eq!(changes.waiting.get(&world.delivery), Some(&None));
        assert!(changes.pause.is_empty());
        let moved: Vec<StateCounts> = changes.counters.values().copied().collect();
        let expected = StateCounts {
            retrying: -1,
            delivered: 1,
            ..StateCounts::default()
        };
        assert_eq!(moved, [expected]);
    }
}

#[test]
fn a_late_notice_of_an_attempt_in_flight_does_not_undo_its_outcome() {
    let mut world = World::new();
    let in_flight = Next::InFlight {
        delay: Duration::from_secs(30),
    };
    let batch = [world.outcome(0, 1, RETRY), world.outcome(0, 0, in_flight)];
    let changes = fold(&batch, &Known::default(), NOW, 0, SETTINGS);
    assert_eq!(
        changes.waiting[&world.delivery].map(|row| row.reason),
        Some(DeferReason::Retry)
    );
    assert_eq!(changes.stale, 1);
}

#[test]
fn a_notice_that_is_recorded_late_is_not_due_before_its_outcome_is_recorded_as_late() {
    let mut world = World::new();
    let delay = Duration::from_secs(30);
    let Record::Outcome(mut notice) = world.outcome(0, 0, Next::InFlight { delay }) else {
        unreachable!()
    };
    notice.at = NOW.minus(Duration::from_secs(60));
    let changes = fold(&[Record::Outcome(notice)], &Known::default(), NOW, 0, SETTINGS);
    let due = changes.waiting[&world.delivery].map(|row| row.due_at);
    assert_eq!(due, Some(NOW.plus(delay)));
}

#[test]
fn a_terminal_state_is_final() {
    let mut world = World::new();
    for state in [
        DeliveryState::Delivered,
        DeliveryState::Exhausted,
        DeliveryState::Cancelled,
    ] {
        let known = world.known(state, None);
        let changes = fold(&[world.outcome(0, 2, RETRY)], &known, NOW, 0, SETTINGS);
        assert_eq!(changes.deliveries[&world.delivery].state, state);
        assert!(changes.waiting.is_empty() && changes.counters.is_empty());
    }
}

#[test]
fn a_skewed_worker_can_neither_burn_nor_postpone_retries() {
    let mut world = World::new();
    let known = world.known(DeliveryState::Retrying, Some((1, Some(NOW))));
    for skew in [-3_600_000, 3_600_000] {
        let Record::Outcome(mut outcome) = world.outcome(1, 2, RETRY) else {
            unreachable!()
        };
        outcome.at = UnixMillis(NOW.0 + skew);
        let later = NOW.plus(Duration::from_secs(1));
        let changes = fold(&[Record::Outcome(outcome)], &known, later, 0, SETTINGS);
        let due = changes.waiting[&world.delivery].unwrap().due_at;
        assert!(
            due >= NOW.plus(Duration::from_secs(5)) && due <= later.plus(Duration::from_secs(5)),
            "{skew}: {due}"
        );
    }
}

#[test]
fn ordered_deliveries_are_numbered_in_the_order_of_acceptance_and_keep_their_number() {
    let mut world = World::new();
    let changes = fold(
        &[world.accepted(Disposition::Ordered)],
        &Known::default(),
        NOW,
        41,
        SETTINGS,
    );
    assert_eq!(
        (changes.last_seq, changes.waiting[&world.delivery].unwrap().seq),
        (42, 42)
    );
    let mut known = world.known(DeliveryState::Pending, Some((1, Some(NOW))));
    known
        .deliveries
        .get_mut(&world.delivery)
        .unwrap()
        .waiting
        .as_mut()
        .unwrap()
        .seq = 42;
    let changes = fold(&[world.outcome(1, 1, RETRY)], &known, NOW, 50, SETTINGS);
    assert_eq!(
        (changes.last_seq, changes.waiting[&world.delivery].unwrap().seq),
        (50, 42)
    );
}

#[test]
fn gone_disables_and_days_of_failures_disable_and_a_success_forgives() {
    let mut world = World::new();
    let mut known = world.known(DeliveryState::Retrying, Some((1, None)));
    let changes = fold(
        &[world.outcome(1, 2, Next::Exhausted { gone: true })],
        &known,
        NOW,
        0,
        SETTINGS,
    );
    assert_eq!(changes.disable[&world.endpoint].1, DisableReason::Gone);

    let six_days_ago = NOW.minus(Duration::from_secs(6 * 24 * 3600));
    known.endpoints.get_mut(&world.endpoint).unwrap().failing_since = Some(six_days_ago);
    let changes = fold(&[world.outcome(1, 2, RETRY)], &known, NOW, 0, SETTINGS);
    assert_eq!(changes.disable[&world.endpoint].1, DisableReason::Failing);

    let changes = fold(&[world.outcome(1, 2, Next::Delivered)], &known, NOW, 0, SETTINGS);
    assert!(changes.disable.is_empty());
    assert_eq!(changes.failing[&world.endpoint].1, None);
}

#[test]
fn a_held_endpoint_is_not_woken() {
    let world = World::new();
    let mut known = Known::default();
    known.endpoints.insert(
        world.endpoint,
        KnownEndpoint {
            held: true,
            ..KnownEndpoint::default()
        },
    );
    let batch = [world.accepted(Disposition::Waiting(DeferReason::Paused))];
    let changes = fold(&batch, &known, NOW, 0, SETTINGS);
    assert_eq!(changes.wake[&world.endpoint].1, UnixMillis::NEVER);
}

/// Applies changes to a `Known`, as an adapter's transaction would.
fn apply(known: &mut Known, changes: &Changes) {
    for (id, put) in &changes.deliveries {
        let entry = known.deliveries.entry(*id).or_insert(KnownDelivery {
            state: put.state,
            attempts: put.attempts,
            waiting: None,
        });
        entry.state = put.state;
        entry.attempts = put.attempts;
    }
    for (id, row) in &changes.waiting {
        if let Some(entry) = known.deliveries.get_mut(id) {
            entry.waiting = row.map(|row| KnownWaiting {
                run: row.run,
                due_at: row.due_at,
                leased_at: row.leased_at,
                seq: row.seq,
            });
        }
    }
}

proptest! {
    /// However a history is cut into batches and however often records are repeated at the cuts, the delivery ends
    /// in the same state, and the counters say so.
    #[test]
    fn batches_and_repeats_do_not_matter(steps in prop::collection::vec(0_u8..5, 1..12), cut in 1_usize..5) {
        let mut world = World::new();
        let mut records = vec![world.accepted(Disposition::Leased)];
        for (index, step) in steps.iter().enumerate() {
            let attempts = u32::try_from(index).unwrap() + 1;
            let next = match step {
                0 => Next::Delivered,
                1 => Next::Exhausted { gone: false },
                2 => Next::Deferred { reason: DeferReason::Rate, delay: Duration::from_secs(1) },
                3 => Next::InFlight { delay: Duration::from_secs(20) },
                _ => RETRY,
            };
            records.push(world.outcome(0, attempts, next));
        }
        let whole = fold(&records, &Known::default(), NOW, 0, SETTINGS);
        let mut known = Known::default();
        let mut total = StateCounts::default();
        for chunk in records.chunks(cut) {
            for _ in 0..2 {
                let changes = fold(chunk, &known, NOW, 0, SETTINGS);
                apply(&mut known, &changes);
                for counts in changes.counters.values() {
                    total.pending += counts.pending;
                    total.retrying += counts.retrying;
                    total.delivered += counts.delivered;
                    total.exhausted += counts.exhausted;
                }
            }
        }
        let end = known.deliveries[&world.delivery];
        if whole.deliveries[&world.delivery].state.is_terminal() {
            prop_assert_eq!(whole.deliveries[&world.delivery].state, end.state);
            prop_assert!(end.waiting.is_none());
        } else {
            prop_assert!(end.waiting.is_some());
        }
        let mut expected = StateCounts::default();
        expected.add(end.state, 1);
        prop_assert_eq!(total, expected);
    }
}

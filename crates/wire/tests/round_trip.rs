//! Whatever is encoded is decoded to the same; whatever is not a frame is an error, never a panic.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_model::{
    Accepted, AppId, Attempt, AttemptClass, AttemptId, CancelReason, Claim, DeferReason, DeliveryId,
    Disposition, EndpointId, Job, Message, MessageId, NewDelivery, Next, Outcome, Record, Trigger,
    UnixMillis,
};
use postrider_wire::{
    Frame, ItemError, MAX_BYTES, MAX_ITEMS, SizeHint, WireError, decode, decode_outcome, decode_partial,
    encode_jobs, encode_journal, encode_outcome,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use uuid::Uuid;

fn id<T>(from: fn(Uuid) -> T) -> impl Strategy<Value = T>
where
    T: std::fmt::Debug,
{
    any::<u128>().prop_map(move |number| from(Uuid::from_u128(number)))
}

fn time() -> impl Strategy<Value = UnixMillis> {
    any::<i64>().prop_map(UnixMillis)
}

fn trigger() -> impl Strategy<Value = Trigger> {
    prop_oneof![Just(Trigger::Scheduled), Just(Trigger::Manual)]
}

fn reason() -> impl Strategy<Value = DeferReason> {
    (0..DeferReason::ALL.len()).prop_map(|place| DeferReason::ALL[place])
}

fn delay() -> impl Strategy<Value = Duration> {
    any::<u32>().prop_map(|millis| Duration::from_millis(millis.into()))
}

fn message() -> impl Strategy<Value = Message> {
    let meta = (
        id(MessageId::from_uuid),
        id(AppId::from_uuid),
        ".{0,20}",
        option::of(".{0,20}"),
        vec(".{0,8}", 0..4),
        ".{0,20}",
    );
    let rest = (
        vec(any::<u8>(), 0..300),
        time(),
        option::of(any::<u16>()),
        option::of(".{0,60}"),
    );
    (meta, rest).prop_map(
        |(
            (id, app, event_type, event_id, channels, content_type),
            (payload, accepted_at, payload_retention_days, traceparent),
        )| Message {
            id,
            app,
            event_type,
            event_id,
            channels,
            content_type,
            payload: payload.into(),
            accepted_at,
            payload_retention_days,
            traceparent,
        },
    )
}

/// Jobs over a few messages.
fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let one = (
        (
            id(DeliveryId::from_uuid),
            id(EndpointId::from_uuid),
            any::<usize>(),
        ),
        (any::<u32>(), any::<u32>(), trigger()),
        (any::<bool>(), any::<bool>(), any::<bool>(), option::of(time())),
    );
    (vec(message(), 1..5), vec(one, 0..20)).prop_map(|(messages, jobs)| {
        let messages: Vec<Arc<Message>> = messages.into_iter().map(Arc::new).collect();
        jobs.into_iter()
            .map(
                |(
                    (delivery, endpoint, place),
                    (run, attempts, trigger),
                    (probe, has_token, ordered, lease_until),
                )| Job {
                    delivery,
                    endpoint,
                    message: Arc::clone(&messages[place % messages.len()]),
                    run,
                    attempts,
                    trigger,
                    probe,
                    has_token,
                    ordered,
                    lease_until,
                },
            )
            .collect()
    })
}

fn accepted() -> impl Strategy<Value = Accepted> {
    let disposition = prop_oneof![
        Just(Disposition::Queued),
        Just(Disposition::Leased),
        reason().prop_map(Disposition::Waiting),
        Just(Disposition::Ordered),
    ];
    let delivery = (id(DeliveryId::from_uuid), id(EndpointId::from_uuid), disposition).prop_map(
        |(id, endpoint, disposition)| NewDelivery {
            id,
            endpoint,
            disposition,
        },
    );
    let claim = (any::<[u8; 32]>(), any::<[u8; 16]>(), any::<[u8; 32]>(), time()).prop_map(
        |(key, resource, fingerprint, expires_at)| Claim {
            key,
            resource,
            fingerprint,
            expires_at,
        },
    );
    (message(), vec(delivery, 0..6), trigger(), vec(claim, 0..3)).prop_map(
        |(message, deliveries, trigger, claims)| Accepted {
            message: Arc::new(message),
            deliveries,
            trigger,
            claims,
        },
    )
}

fn next() -> impl Strategy<Value = Next> {
    prop_oneof![
        Just(Next::Delivered),
        delay().prop_map(|delay| Next::Retry { delay }),
        any::<bool>().prop_map(|gone| Next::Exhausted { gone }),
        (1..=7_i16).prop_map(|reason| Next::Cancelled(CancelReason::from_stored(reason).expect("a reason"))),
        (reason(), delay()).prop_map(|(reason, delay)| Next::Deferred { reason, delay }),
        delay().prop_map(|delay| Next::InFlight { delay }),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let attempt = (
        (id(AttemptId::from_uuid), time(), any::<u32>()),
        (0..=7_i16, any::<u16>(), vec(any::<u8>(), 0..100), ".{0,40}"),
    )
        .prop_map(
            |((id, started_at, micros), (class, status, response, url))| Attempt {
                id,
                started_at,
                duration: Duration::from_micros(micros.into()),
                class: AttemptClass::from_stored(class).expect("a class"),
                status,
                response: response.into(),
                url,
            },
        );
    let ids = (
        id(DeliveryId::from_uuid),
        id(MessageId::from_uuid),
        id(EndpointId::from_uuid),
        id(AppId::from_uuid),
    );
    let rest = (
        any::<u32>(),
        any::<u32>(),
        trigger(),
        time(),
        option::of(attempt),
        next(),
    );
    (ids, rest).prop_map(
        |((delivery, message, endpoint, app), (run, attempts, trigger, at, attempt, next))| Outcome {
            delivery,
            message,
            endpoint,
            app,
            run,
            attempts,
            trigger,
            at,
            attempt,
            next,
        },
    )
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    vec(
        prop_oneof![
            accepted().prop_map(Record::Accepted),
            outcome().prop_map(|outcome| Record::Outcome(Box::new(outcome))),
        ],
        0..10,
    )
}

proptest! {
    #[test]
    fn jobs_come_back_the_same_and_share_bodies(jobs in jobs()) {
        let frame = encode_jobs(&jobs);
        let hint: usize = jobs.iter().map(|job| job.size_hint() + job.message.size_hint()).sum();
        prop_assert!(frame.len() <= hint + 4 * 300 + 64, "{} bytes, hinted {hint}", frame.len());
        let Ok(Frame::Jobs(decoded)) = decode(frame) else { panic!("a frame of jobs") };
        prop_assert_eq!(&decoded, &jobs);
        for (a, first) in decoded.iter().zip(&jobs) {
            for (b, second) in decoded.iter().zip(&jobs) {
                let shared = Arc::ptr_eq(&first.message, &second.message);
                prop_assert_eq!(Arc::ptr_eq(&a.message, &b.message), shared);
            }
        }
    }

    #[test]
    fn a_journal_comes_back_the_same(records in records()) {
        let frame = encode_journal(&records);
        let hint: usize = records.iter().map(SizeHint::size_hint).sum();
        prop_assert!(frame.len() <= hint + 64 * (records.len() + 1), "{} bytes, hinted {hint}", frame.len());
        prop_assert_eq!(decode(frame).expect("a frame"), Frame::Journal(records));
    }

    #[test]
    fn an_outcome_comes_back_the_same(outcome in outcome()) {
        prop_assert_eq!(decode_outcome(encode_outcome(&outcome)).expect("an outcome"), outcome);
    }

    #[test]
    fn noise_is_an_error_or_a_frame_and_never_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode(bytes.clone().into());
        let _ = decode_outcome(bytes.into());
    }

    #[test]
    fn a_damaged_frame_never_panics(records in records(), place in any::<usize>(), bit in 0..8_u8) {
        let mut bytes = encode_journal(&records).to_vec();
        let place = place % bytes.len();
        bytes[place] ^= 1 << bit;
        let _ = decode_partial(bytes.into());
    }
}

fn example() -> Outcome {
    Outcome {
        delivery: DeliveryId::from_uuid(Uuid::from_u128(1)),
        message: MessageId::from_uuid(Uuid::from_u128(2)),
        endpoint: EndpointId::from_uuid(Uuid::from_u128(3)),
        app: AppId::from_uuid(Uuid::from_u128(4)),
        run: 0,
        attempts: 1,
        trigger: Trigger::Scheduled,
        at: UnixMillis(5),
        attempt: None,
        next: Next::Cancelled(CancelReason::Parked),
    }
}

/// A journal of three records whose second has these bytes.
fn journal_with(second: &[u8]) -> Bytes {
    let good = encode_outcome(&example());
    let record = |outcome: &[u8]| {
        let mut record = vec![0x12, u8::try_from(outcome.len()).expect("a short outcome")];
        record.extend_from_slice(outcome);
        record
    };
    let mut journal = Vec::new();
    for outcome in [&good, second, &good] {
        let record = record(outcome);
        journal.extend([0x0a, u8::try_from(record.len()).expect("a short record")]);
        journal.extend(record);
    }
    let mut frame = vec![0x08, 0x01, 0x1a];
    let length = journal.len();
    frame.extend([
        u8::try_from(length & 0x7f | 0x80).expect("seven bits"),
        u8::try_from(length >> 7).expect("seven bits"),
    ]);
    frame.extend(journal);
    frame.into()
}

#[test]
fn a_bad_record_is_named_and_costs_only_itself() {
    let good = encode_outcome(&example());
    assert_eq!(good[good.len() - 2..], [0x08, 6], "the reason comes last");
    let mut unknown = good.to_vec();
    *unknown.last_mut().unwrap() = 99;
    let mut short_id = good.to_vec();
    // The first field loses a byte.
    assert_eq!(short_id[..2], [0x0a, 16]);
    short_id[1] = 15;
    short_id.remove(2);
    let cases = [
        (
            unknown,
            ItemError::UnknownValue {
                field: "cancelled.reason",
                value: 99,
            },
        ),
        (
            short_id,
            ItemError::Length {
                field: "delivery",
                found: 15,
                wanted: 16,
            },
        ),
    ];
    for (bytes, expected) in cases {
        let frame = journal_with(&bytes);
        let error = decode(frame.clone()).unwrap_err();
        assert!(
            matches!(&error, WireError::Item { index: 1, source } if *source == expected),
            "{error:?}"
        );
        let (kept, rejected) = decode_partial(frame).unwrap();
        let whole = Record::Outcome(Box::new(example()));
        assert_eq!(kept, Frame::Journal(vec![whole.clone(), whole]));
        assert_eq!((rejected.len(), rejected[0].index), (1, 1));
    }
}

#[test]
fn frames_above_the_limits_are_refused() {
    let outcome = Record::Outcome(Box::new(example()));
    let most = encode_journal(&vec![outcome.clone(); MAX_ITEMS]);
    assert!(decode(most).is_ok());
    let too_many = encode_journal(&vec![outcome; MAX_ITEMS + 1]);
    assert!(matches!(decode(too_many), Err(WireError::TooMany { found }) if found == MAX_ITEMS + 1));
    let too_large = Bytes::from(vec![0; MAX_BYTES + 1]);
    assert!(matches!(decode(too_large), Err(WireError::TooLarge { .. })));
}

#[test]
fn a_payload_is_read_without_a_copy() {
    let accepted = Record::Accepted(Accepted {
        message: Arc::new(Message {
            id: MessageId::from_uuid(Uuid::from_u128(2)),
            app: AppId::from_uuid(Uuid::from_u128(4)),
            event_type: "a".into(),
            event_id: None,
            channels: Vec::new(),
            content_type: "text/plain".into(),
            payload: Bytes::from(vec![b'x'; 1000]),
            accepted_at: UnixMillis(1),
            payload_retention_days: None,
            traceparent: None,
        }),
        deliveries: Vec::new(),
        trigger: Trigger::Scheduled,
        claims: Vec::new(),
    });
    let frame = encode_journal(&[accepted]);
    let Ok(Frame::Journal(records)) = decode(frame.clone()) else {
        panic!("a journal")
    };
    let [Record::Accepted(accepted)] = records.as_slice() else {
        panic!("one accepted message")
    };
    let range = frame.as_ptr_range();
    assert!(range.contains(&accepted.message.payload.as_ptr()));
}

#[test]
fn a_delay_is_never_shortened() {
    let mut early = example();
    early.next = Next::Retry {
        delay: Duration::from_micros(1_500),
    };
    let decoded = decode_outcome(encode_outcome(&early)).unwrap();
    assert_eq!(
        decoded.next,
        Next::Retry {
            delay: Duration::from_millis(2)
        }
    );
}

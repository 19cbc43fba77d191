//! Schema version 1, frozen: what this release writes is byte for byte what version 1 was, and can be read.
//!
//! A change here means that running processes of another release misread frames: raise the schema instead.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_model::{
    Accepted, AppId, Attempt, AttemptClass, AttemptId, CancelReason, Claim, DeferReason, DeliveryId,
    Disposition, EndpointId, Job, Message, MessageId, NewDelivery, Next, Outcome, Record, Trigger,
    UnixMillis,
};
use postrider_wire::{Frame, WireError, decode, decode_outcome, encode_jobs, encode_journal, encode_outcome};
use uuid::Uuid;

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(0x0193_4f00_0000_8000_8000_0000_0000_0000 | number)
}

fn message(number: u128) -> Arc<Message> {
    Arc::new(Message {
        id: MessageId::from_uuid(uuid(number)),
        app: AppId::from_uuid(uuid(1)),
        event_type: "invoice.paid".into(),
        event_id: (number == 2).then(|| "evt-7".into()),
        channels: vec!["eu".into(), "test".into()],
        content_type: "application/json".into(),
        payload: Bytes::from_static(br#"{"amount": 1.50, "note": "gr\u00fc\u00dfe"}"#),
        accepted_at: UnixMillis(1_763_700_000_123),
        payload_retention_days: (number == 2).then_some(30),
        traceparent: (number == 2).then(|| "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
    })
}

fn jobs() -> Vec<Job> {
    let first = message(2);
    let second = message(3);
    [(&first, 10), (&first, 11), (&second, 10)]
        .into_iter()
        .zip(0_u32..)
        .map(|((message, endpoint), run)| {
            let endpoint = EndpointId::from_uuid(uuid(endpoint));
            Job {
                delivery: DeliveryId::derive(message.id, endpoint),
                endpoint,
                message: Arc::clone(message),
                run,
                attempts: run * 2,
                trigger: if run == 2 {
                    Trigger::Manual
                } else {
                    Trigger::Scheduled
                },
                probe: run == 1,
                has_token: run == 1,
                ordered: run == 2,
                lease_until: (run > 0).then_some(UnixMillis(1_763_700_060_000)),
            }
        })
        .collect()
}

fn outcome(next: Next, attempt: Option<Attempt>) -> Outcome {
    Outcome {
        delivery: DeliveryId::from_uuid(uuid(20)),
        message: MessageId::from_uuid(uuid(2)),
        endpoint: EndpointId::from_uuid(uuid(10)),
        app: AppId::from_uuid(uuid(1)),
        run: 4,
        attempts: 3,
        trigger: Trigger::Scheduled,
        at: UnixMillis(1_763_700_001_000),
        attempt,
        next,
    }
}

fn attempt(class: AttemptClass, status: u16) -> Attempt {
    Attempt {
        id: AttemptId::from_uuid(uuid(30)),
        started_at: UnixMillis(1_763_700_000_900),
        duration: Duration::from_micros(98_765),
        class,
        status,
        response: Bytes::from_static(b"\xff\x00ok"),
        url: "https://example.com/hook".into(),
    }
}

fn records() -> Vec<Record> {
    let dispositions = [
        Disposition::Queued,
        Disposition::Leased,
        Disposition::Waiting(DeferReason::Backlog),
        Disposition::Ordered,
    ];
    let accepted = Accepted {
        message: message(2),
        deliveries: (20..)
            .zip(dispositions)
            .map(|(number, disposition)| NewDelivery {
                id: DeliveryId::from_uuid(uuid(number)),
                endpoint: EndpointId::from_uuid(uuid(number + 20)),
                disposition,
            })
            .collect(),
        trigger: Trigger::Manual,
        claims: vec![Claim {
            key: [7; 32],
            resource: [8; 16],
            fingerprint: [9; 32],
            expires_at: UnixMillis(1_763_786_400_000),
        }],
    };
    let delay = Duration::from_millis(4_321);
    let outcomes = [
        outcome(Next::Delivered, Some(attempt(AttemptClass::Success, 204))),
        outcome(Next::Retry { delay }, Some(attempt(AttemptClass::Timeout, 0))),
        outcome(
            Next::Exhausted { gone: true },
            Some(attempt(AttemptClass::Status, 410)),
        ),
        outcome(Next::Cancelled(CancelReason::Parked), None),
        outcome(
            Next::Deferred {
                reason: DeferReason::Drain,
                delay,
            },
            None,
        ),
        outcome(Next::InFlight { delay }, None),
    ];
    let mut records = vec![Record::Accepted(accepted)];
    records.extend(outcomes.map(|outcome| Record::Outcome(Box::new(outcome))));
    records
}

/// The bytes of a file of hexadecimal digits in lines.
fn frozen(hex: &str) -> Bytes {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap_or(""), 16).unwrap_or_default())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.chunks(32).fold(String::new(), |mut text, line| {
        for byte in line {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        text
    })
}

#[test]
fn jobs_of_version_1_are_frozen() {
    let golden = include_str!("golden/jobs_v1.hex");
    assert_eq!(hex(&encode_jobs(&jobs())), golden);
    assert_eq!(decode(frozen(golden)).unwrap(), Frame::Jobs(jobs()));
}

#[test]
fn a_journal_of_version_1_is_frozen() {
    let golden = include_str!("golden/journal_v1.hex");
    assert_eq!(hex(&encode_journal(&records())), golden);
    assert_eq!(decode(frozen(golden)).unwrap(), Frame::Journal(records()));
}

#[test]
fn an_outcome_of_version_1_is_frozen() {
    let golden = include_str!("golden/outcome_v1.hex");
    let outcome = outcome(Next::Delivered, Some(attempt(AttemptClass::Success, 204)));
    assert_eq!(hex(&encode_outcome(&outcome)), golden);
    assert_eq!(decode_outcome(frozen(golden)).unwrap(), outcome);
}

#[test]
fn fields_of_a_later_release_are_passed_over() {
    let mut extended = encode_jobs(&jobs()).to_vec();
    // Field 1000, a varint.
    extended.extend_from_slice(&[0xc0, 0x3e, 0x07]);
    assert_eq!(decode(extended.into()).unwrap(), Frame::Jobs(jobs()));
}

#[test]
fn a_later_schema_is_refused_by_its_number() {
    let mut later = encode_jobs(&[]).to_vec();
    assert_eq!(&later[..2], [0x08, 0x01], "the schema comes first");
    later[1] = 2;
    assert!(matches!(
        decode(later.into()),
        Err(WireError::Schema { found: 2 })
    ));
    assert!(matches!(
        decode(Bytes::new()),
        Err(WireError::Schema { found: 0 })
    ));
}

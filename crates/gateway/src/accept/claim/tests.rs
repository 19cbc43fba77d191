use http::HeaderMap;
use postrider_store::AppRef;

use super::*;
use crate::accept::{Draft, Target};
use crate::idempotency::IdempotencyKey;

fn id(number: i64) -> MessageId {
    MessageId::floor(UnixMillis(number))
}

fn admission(claims: [ClaimAnswer; 2]) -> Admission {
    Admission {
        version: None,
        quota_wait: None,
        claims: claims.into(),
        has_forgotten: false,
    }
}

/// A message with a key, `k`, and an event id.
fn request(app: AppId) -> Request {
    let headers = HeaderMap::from_iter([(
        http::HeaderName::from_static("idempotency-key"),
        http::HeaderValue::from_static("k"),
    )]);
    Request {
        app: AppRef::Id(app),
        drafts: vec![Draft {
            index: 0,
            event_type: "a".into(),
            event_id: Some("e".into()),
            channels: Vec::new(),
            content_type: "application/json".into(),
            payload: "{}".into(),
            retention_days: None,
        }],
        key: IdempotencyKey::from_headers(&headers).expect("a key"),
        fingerprint: [1; 32],
        traceparent: None,
        target: Target::Subscribers,
    }
}

#[test]
fn an_event_id_that_was_taken_over_is_kept_when_giving_the_key_up_got_lost() {
    let app = AppId::generate(UnixMillis(1), &mut rand::rng());
    let request = request(app);
    let (own, earlier) = (id(1_000), id(2_000));
    let mut claimer = Claimer::new(app, None, &request, own);
    let taken_over = |id: MessageId| ClaimAnswer::TakenOver {
        resource: *id.as_bytes(),
    };
    // The second round meets the key that the first one claimed, since giving it up got lost, after its pending time.
    for answers in [
        [ClaimAnswer::Claimed, taken_over(earlier)],
        [taken_over(own), ClaimAnswer::Claimed],
    ] {
        let wanted = claimer.wanted();
        let step = claimer.read(&wanted, &admission(answers), false).expect("a step");
        let Step::GiveUpAndAgain(given_up) = step else {
            panic!("another step")
        };
        let given_up: Vec<_> = given_up
            .iter()
            .map(|made| (made.draft, made.request.resource))
            .collect();
        assert_eq!(
            given_up,
            [(None, *own.as_bytes())],
            "the key, and not the event id"
        );
        assert_eq!(claimer.fates, [Fate::Id(earlier)]);
    }
    let wanted = claimer.wanted();
    let step = claimer.read(&wanted, &admission([ClaimAnswer::Claimed; 2]), false);
    assert!(matches!(step, Ok(Step::Made)));
    let inherited = claimer.claimed(wanted, None, false).made;
    let inherited: Vec<bool> = inherited.iter().map(|made| made.inherited).collect();
    assert_eq!(
        inherited,
        [false, true],
        "the event id is not given up after a refusal"
    );
}

#[test]
fn a_repeat_waits_for_its_key_although_its_event_ids_are_settled() {
    let app = AppId::generate(UnixMillis(1), &mut rand::rng());
    let request = request(app);
    let mut claimer = Claimer::new(app, None, &request, id(1_000));
    let held = |finished| ClaimAnswer::Held {
        resource: *id(2_000).as_bytes(),
        fingerprint: [1; 32],
        finished,
    };
    let wanted = claimer.wanted();
    // The first request settles event ids before its key.
    let step = claimer.read(&wanted, &admission([held(false), held(true)]), false);
    assert!(matches!(step, Ok(Step::Wait)));
    assert_eq!(
        claimer.fates,
        [Fate::Id(id(1_000))],
        "no event id is another message's"
    );
    let step = claimer.read(&wanted, &admission([held(true), held(true)]), false);
    assert!(matches!(step, Ok(Step::Repeated)));
}

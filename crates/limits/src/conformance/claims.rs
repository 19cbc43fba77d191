//! Quotas and claims.

use std::time::Duration;

use postrider_model::AppId;
use tokio::time::sleep;
use uuid::Uuid;

use super::new_app;
use crate::ClaimAnswer::{Claimed, Held, Skipped, TakenOver};
use crate::ClaimEnd::{Finished, GivenUp};
use crate::{Admission, AdmitRequest, ClaimAnswer, ClaimEnd, ClaimRequest, Limits, Rate, Settlement};

const HOUR: Duration = Duration::from_secs(3600);
const PRINT: [u8; 32] = [0xfe; 32];

fn claim(key: [u8; 32], resource: [u8; 16]) -> ClaimRequest {
    ClaimRequest {
        key,
        resource,
        fingerprint: PRINT,
        ttl: HOUR,
        pending_ttl: HOUR,
    }
}

fn random() -> [u8; 16] {
    Uuid::new_v4().into_bytes()
}

/// With bytes that text protocols stumble over.
fn key() -> [u8; 32] {
    let mut key = [b'\r'; 32];
    key[1..3].copy_from_slice(&[0, b'\n']);
    key[16..].copy_from_slice(&random());
    key
}

async fn admit(
    limits: &dyn Limits,
    app: AppId,
    (messages, quota): (u32, Option<Rate>),
    claims: &[ClaimRequest],
) -> Admission {
    let request = AdmitRequest {
        app,
        messages,
        quota,
        claims: claims.to_vec(),
    };
    limits.admit(&[request]).await.expect("admit").remove(0)
}

async fn claims(limits: &dyn Limits, app: AppId, claims: &[ClaimRequest]) -> Vec<ClaimAnswer> {
    admit(limits, app, (1, None), claims).await.claims
}

async fn settle(limits: &dyn Limits, app: AppId, claim: &ClaimRequest, end: ClaimEnd) {
    let (key, resource) = (claim.key, claim.resource);
    limits
        .settle(&[Settlement {
            app,
            key,
            resource,
            end,
        }])
        .await
        .expect("settle");
}

pub(super) async fn quota_is_taken_all_or_none(limits: &dyn Limits) {
    let app = new_app();
    let quota = Some(Rate {
        per_second: 1,
        burst: 3,
    });
    let free = claim(key(), random());
    assert_eq!(admit(limits, app, (2, quota), &[]).await.quota_wait, None);
    let refused = admit(limits, app, (2, quota), std::slice::from_ref(&free)).await;
    let wait = refused.quota_wait.expect("the quota is used up");
    assert!(!wait.is_zero() && wait <= Duration::from_secs(1), "{wait:?}");
    assert_eq!(refused.claims, [Skipped]);

    let held = claim(key(), random());
    assert_eq!(claims(limits, app, std::slice::from_ref(&held)).await, [Claimed]);
    let repeat = admit(limits, app, (1, quota), &[claim(held.key, random())]).await;
    assert!(matches!(repeat.claims[..], [Held { .. }]), "{:?}", repeat.claims);
    let passed = admit(limits, app, (1, quota), &[free]).await;
    assert_eq!(
        passed.quota_wait, None,
        "one was left, and the held request took none"
    );
    assert_eq!(passed.claims, [Claimed], "a refused request claims nothing");
    assert!(admit(limits, app, (1, quota), &[]).await.quota_wait.is_some());

    let app = new_app();
    assert_eq!(
        admit(limits, app, (5, quota), &[]).await.quota_wait,
        None,
        "above the burst, once"
    );
    let wait = admit(limits, app, (1, quota), &[])
        .await
        .quota_wait
        .expect("and paid back");
    assert!(wait > Duration::from_secs(1), "{wait:?}");
}

pub(super) async fn a_repeat_needs_no_quota(limits: &dyn Limits) {
    let app = new_app();
    let quota = Some(Rate {
        per_second: 1,
        burst: 1,
    });
    let first = ClaimRequest {
        pending_ttl: Duration::from_millis(300),
        ..claim(key(), random())
    };
    let one = |claim: &ClaimRequest| [claim.clone()];
    // So many that it is used up for as long as this test takes.
    assert_eq!(
        admit(limits, app, (60, quota), &one(&first)).await.claims,
        [Claimed]
    );
    assert!(admit(limits, app, (1, quota), &[]).await.quota_wait.is_some());
    let again = claim(first.key, random());
    let held = admit(limits, app, (1, quota), &one(&again)).await;
    assert!(
        matches!(held.claims[..], [Held { finished: false, .. }]),
        "{held:?}"
    );
    assert_eq!(held.quota_wait, None, "it takes nothing");
    let own = admit(limits, app, (1, quota), &one(&first)).await;
    assert_eq!((own.claims, own.quota_wait), (vec![Claimed], None), "it was paid");
    sleep(Duration::from_millis(320)).await;
    let taken_over = admit(limits, app, (1, quota), &one(&again)).await;
    let resource = first.resource;
    assert_eq!(
        (taken_over.claims, taken_over.quota_wait),
        (vec![TakenOver { resource }], None),
        "the first one paid for it"
    );
    settle(limits, app, &first, Finished).await;
    let finished = admit(limits, app, (1, quota), &one(&again)).await;
    assert!(
        matches!(finished.claims[..], [Held { finished: true, .. }]),
        "{finished:?}"
    );
}

pub(super) async fn a_key_is_held_until_it_is_given_up(limits: &dyn Limits) {
    let app = new_app();
    let first = claim(key(), random());
    let second = ClaimRequest {
        fingerprint: [7; 32],
        ..claim(first.key, random())
    };
    let held = |finished| Held {
        resource: first.resource,
        fingerprint: PRINT,
        finished,
    };
    assert_eq!(claims(limits, app, std::slice::from_ref(&first)).await, [Claimed]);
    assert_eq!(
        claims(limits, app, std::slice::from_ref(&first)).await,
        [Claimed],
        "a repeat of the same"
    );
    assert_eq!(
        claims(limits, app, std::slice::from_ref(&second)).await,
        [held(false)]
    );
    settle(limits, app, &second, GivenUp).await;
    settle(limits, app, &second, Finished).await;
    assert_eq!(
        claims(limits, app, std::slice::from_ref(&second)).await,
        [held(false)],
        "not the owner"
    );
    settle(limits, app, &first, Finished).await;
    assert_eq!(
        claims(limits, app, std::slice::from_ref(&second)).await,
        [held(true)]
    );
    settle(limits, app, &first, GivenUp).await;
    assert_eq!(
        claims(limits, app, std::slice::from_ref(&first)).await,
        [held(true)],
        "finished stays so"
    );

    let first = claim(key(), random());
    assert_eq!(claims(limits, app, std::slice::from_ref(&first)).await, [Claimed]);
    settle(limits, app, &first, GivenUp).await;
    assert_eq!(
        claims(limits, app, &[claim(first.key, random())]).await,
        [Claimed],
        "given up"
    );
}

pub(super) async fn an_abandoned_key_is_taken_over_with_its_id(limits: &dyn Limits) {
    let app = new_app();
    let pending_ttl = Duration::from_secs(1);
    let first = ClaimRequest {
        pending_ttl,
        ..claim(key(), random())
    };
    let later = || ClaimRequest {
        pending_ttl,
        ..claim(first.key, random())
    };
    let held = |finished| Held {
        resource: first.resource,
        fingerprint: PRINT,
        finished,
    };
    assert_eq!(claims(limits, app, std::slice::from_ref(&first)).await, [Claimed]);
    assert_eq!(claims(limits, app, &[later()]).await, [held(false)]);
    sleep(pending_ttl + Duration::from_millis(20)).await;
    let other = ClaimRequest {
        fingerprint: [1; 32],
        ..later()
    };
    assert_eq!(
        claims(limits, app, &[other]).await,
        [held(false)],
        "another body never takes over"
    );
    assert_eq!(
        claims(limits, app, &[later()]).await,
        [TakenOver {
            resource: first.resource
        }]
    );
    assert_eq!(
        claims(limits, app, &[later()]).await,
        [held(false)],
        "pending anew"
    );
    settle(limits, app, &first, Finished).await;
    assert_eq!(
        claims(limits, app, &[later()]).await,
        [held(true)],
        "settled under the first id"
    );
}

pub(super) async fn claims_are_made_all_or_none(limits: &dyn Limits) {
    let app = new_app();
    let (a, b, c) = (
        claim(key(), random()),
        claim(key(), random()),
        claim(key(), random()),
    );
    assert_eq!(claims(limits, app, std::slice::from_ref(&b)).await, [Claimed]);
    let b_again = claim(b.key, random());
    let answers = claims(limits, app, &[a.clone(), b_again, c.clone()]).await;
    let held = Held {
        resource: b.resource,
        fingerprint: PRINT,
        finished: false,
    };
    assert_eq!(answers, [Skipped, held, Skipped]);
    let (twice, thrice) = (claim(a.key, random()), claim(a.key, random()));
    let held = Held {
        resource: a.resource,
        fingerprint: PRINT,
        finished: false,
    };
    let answers = claims(limits, app, &[a.clone(), c.clone(), twice, thrice]).await;
    assert_eq!(answers, [Skipped, Skipped, held, held], "by the first of them");
    let others = [claim(a.key, random()), claim(c.key, random())];
    assert_eq!(
        claims(limits, app, &others).await,
        [Claimed, Claimed],
        "nothing was made before"
    );
}

pub(super) async fn a_finished_claim_ends(limits: &dyn Limits) {
    let app = new_app();
    let first = ClaimRequest {
        ttl: Duration::from_millis(500),
        ..claim(key(), random())
    };
    assert_eq!(claims(limits, app, std::slice::from_ref(&first)).await, [Claimed]);
    settle(limits, app, &first, Finished).await;
    let held = claims(limits, app, &[claim(first.key, random())]).await;
    assert!(matches!(held[..], [Held { finished: true, .. }]), "{held:?}");
    sleep(Duration::from_millis(520)).await;
    assert_eq!(
        claims(limits, app, &[claim(first.key, random())]).await,
        [Claimed]
    );
}

pub(super) async fn requests_of_a_batch_are_answered_in_order(limits: &dyn Limits) {
    let (app, other) = (new_app(), new_app());
    let quota = Some(Rate {
        per_second: 1,
        burst: 1,
    });
    limits.publish_version(app, 7).await.expect("publish");
    let (a, b) = (claim(key(), random()), claim(key(), random()));
    let request = |app, quota, claims: &[&ClaimRequest]| AdmitRequest {
        app,
        messages: 1,
        quota,
        claims: claims.iter().map(|claim| (*claim).clone()).collect(),
    };
    let (a_again, b_again) = (claim(a.key, random()), claim(b.key, random()));
    let batch = [
        request(app, None, &[&a]),
        request(other, quota, &[]),
        request(app, None, &[&a_again]),
        request(app, None, &[]),
        request(app, None, &[&b]),
        request(app, quota, &[&b_again]),
        request(other, quota, &[]),
        request(app, None, &[&b]),
    ];
    let answers = limits.admit(&batch).await.expect("admit");
    let versions: Vec<_> = answers.iter().map(|answer| answer.version).collect();
    let known = Some(7);
    assert_eq!(versions, [known, None, known, known, known, known, None, known]);
    let claims: Vec<_> = answers.iter().map(|answer| &answer.claims[..]).collect();
    let held = |claim: &ClaimRequest| Held {
        resource: claim.resource,
        fingerprint: PRINT,
        finished: false,
    };
    let (a_held, b_held) = ([held(&a)], [held(&b)]);
    let expected: [&[ClaimAnswer]; 8] = [
        &[Claimed],
        &[],
        &a_held,
        &[],
        &[Claimed],
        &b_held,
        &[],
        &[Claimed],
    ];
    assert_eq!(claims, expected);
    let waits: Vec<_> = answers.iter().map(|answer| answer.quota_wait.is_some()).collect();
    assert_eq!(waits, [false, false, false, false, false, false, true, false]);
}

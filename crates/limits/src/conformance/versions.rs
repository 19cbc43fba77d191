//! Versions of configuration.

use std::time::Duration;

use tokio::time::timeout;

use super::{Fixture, new_app};
use crate::{AdmitRequest, Limits};

pub(super) async fn versions_only_grow_and_are_told(limits: &dyn Limits) {
    let fixture = Fixture::new(limits);
    let app = fixture.app;
    let mut invalidations = limits.invalidations();
    assert_eq!(seen(&fixture).await, (None, None), "unknown at first");

    for (published, known) in [
        (9, 9),
        (10, 10),
        (9, 10),
        (1 << 60, 1 << 60),
        ((1 << 60) - 1, 1 << 60),
    ] {
        limits.publish_version(app, published).await.expect("publish");
        assert_eq!(
            seen(&fixture).await,
            (Some(known), Some(known)),
            "after publishing {published}"
        );
    }
    // A marker behind the others tells that no more than three came. In a cluster what goes through different nodes
    // keeps no order, so the three are waited for first.
    let last = new_app();
    let mut told = 0;
    loop {
        let heard = timeout(Duration::from_secs(5), invalidations.recv())
            .await
            .expect("an invalidation");
        match heard.expect("no lag") {
            heard if heard == app => {
                told += 1;
                if told == 3 {
                    limits.publish_version(last, 1).await.expect("publish");
                }
            }
            heard if heard == last => break,
            _ => {}
        }
    }
    assert_eq!(told, 3, "newer versions are told, older ones are not");
}

async fn seen(fixture: &Fixture<'_>) -> (Option<u64>, Option<u64>) {
    let request = AdmitRequest {
        app: fixture.app,
        messages: 1,
        quota: None,
        claims: Vec::new(),
    };
    let admission = fixture.limits.admit(&[request]).await.expect("admit").remove(0);
    let gate = fixture
        .limits
        .gate(&[fixture.request()])
        .await
        .expect("gate")
        .remove(0);
    (admission.version, gate.version)
}

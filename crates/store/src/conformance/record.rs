//! Checks of `RecordStore`.

use std::time::Duration;

use bytes::Bytes;
use postrider_model::{
    AppId, Claim, DeferReason, DeliveryState, Disposition, ExhaustedPolicy, Next, Record, UnixMillis,
};

use super::fixture::{DAY, FAILED, HOUR, RETRY, SECOND, WAITING, World, grant, must, until};
use super::sweeps::change;
use crate::{AppRef, AttemptFilter, EndpointCounts, EndpointRef, Grant, MessageFilter, SharedStore};

/// Rule 1: recorded twice is recorded once.
pub async fn a_batch_recorded_twice_is_recorded_once(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let message = world.message();
    let batch = [
        world.accepted(&message, &[endpoint], Disposition::Leased),
        world.ended(&message, endpoint, 0, RETRY),
    ];
    let report = world.record(&batch).await;
    assert_eq!((report.messages, report.attempts, report.stale), (1, 1, 0));
    let report = world.record(&batch).await;
    assert_eq!((report.messages, report.attempts), (0, 0));
    let delivery = world.delivery(&message).await;
    assert_eq!((delivery.state, delivery.attempts), (DeliveryState::Retrying, 1));
    assert_eq!(
        delivery.waiting.map(|(_, reason)| reason),
        Some(DeferReason::Retry)
    );
    let counts = world.counts(endpoint).await;
    assert_eq!(
        counts,
        EndpointCounts {
            sending: 1,
            ..EndpointCounts::default()
        }
    );
}

/// Rule 4: facts may come in any order.
pub async fn an_outcome_may_come_before_its_message(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let message = world.message();
    world
        .record(&[world.ended(&message, endpoint, 0, Next::Delivered)])
        .await;
    let report = world
        .record(&[world.accepted(&message, &[endpoint], Disposition::Leased)])
        .await;
    assert_eq!(report.messages, 1);
    let delivery = world.delivery(&message).await;
    assert_eq!(
        (delivery.state, delivery.waiting),
        (DeliveryState::Delivered, None)
    );
    assert!(world.take_all().await.is_empty(), "nothing is left to do");
    let row = must(world.store.message(world.app, message.id, true).await).expect("recorded");
    assert_eq!(row.message, *message);
}

/// Rule 3: an outcome of an earlier run adds its attempt and leaves the row.
pub async fn an_outcome_of_an_earlier_run_is_stale(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let message = world.message();
    world
        .record(&[world.accepted(&message, &[endpoint], WAITING)])
        .await;
    let job = world.take(endpoint, 1).await.remove(0);
    assert_eq!(job.run, 1);
    let report = world.record(&[world.ended(&message, endpoint, 0, RETRY)]).await;
    assert_eq!((report.stale, report.attempts), (1, 1));
    let delivery = world.delivery(&message).await;
    assert_eq!(
        delivery.waiting.map(|(due, _)| due),
        job.lease_until,
        "its lease stands"
    );
    world
        .record(&[world.ended(&message, endpoint, 1, Next::Delivered)])
        .await;
    assert_eq!(world.state(&message).await, DeliveryState::Delivered);
}

/// Rule 3: a success of an earlier run ends the delivery, and the sequence goes on; what the later run brings is too late.
pub async fn a_success_of_an_earlier_run_ends_the_delivery(store: SharedStore) {
    let world = World::new(store).await;
    for ordered in [false, true] {
        let change = |endpoint: &mut postrider_model::Endpoint| {
            endpoint.ordered = ordered;
            endpoint.on_exhausted = ExhaustedPolicy::Pause;
        };
        let endpoint = world.endpoint(change).await.id;
        let disposition = if ordered { Disposition::Ordered } else { WAITING };
        let messages = world.accept_many(endpoint, 2, disposition).await;
        let granted = Grant {
            ordered,
            ..grant(endpoint, 1)
        };
        world.claim_until(endpoint).await;
        let first = world.lease(&[granted], Duration::from_millis(50)).await.remove(0);
        let again = until("the lease expires", async || {
            let jobs = world.lease(&[granted], HOUR).await;
            jobs.into_iter().find(|job| job.delivery == first.delivery)
        })
        .await;
        assert_eq!((first.run, again.run), (1, 2));
        let message = &first.message;
        let report = world
            .record(&[world.ended(message, endpoint, 1, Next::Delivered)])
            .await;
        assert_eq!((report.stale, report.attempts), (0, 1));
        let delivery = world.delivery(message).await;
        assert_eq!(
            (delivery.state, delivery.waiting),
            (DeliveryState::Delivered, None)
        );

        let report = world.record(&[world.ended(message, endpoint, 2, FAILED)]).await;
        assert_eq!((report.stale, report.attempts), (1, 1));
        let delivery = world.delivery(message).await;
        assert_eq!(
            (delivery.state, delivery.waiting),
            (DeliveryState::Delivered, None)
        );
        let counts = world.counts(endpoint).await;
        assert_eq!((counts.success, counts.fail), (1, 0));
        if ordered {
            let next = world.take(endpoint, 2).await;
            let next: Vec<_> = next.iter().map(|job| job.message.id).collect();
            assert_eq!(next, [messages[1].id], "it is not paused");
        }
    }
}

/// Rule 2: what has ended does not move again.
pub async fn terminal_states_are_final(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let cancelled = Next::Cancelled(postrider_model::CancelReason::Parked);
    let ends = [
        (Next::Delivered, DeliveryState::Delivered),
        (FAILED, DeliveryState::Exhausted),
        (cancelled, DeliveryState::Cancelled),
    ];
    for (end, state) in ends {
        let message = world.message();
        world
            .record(&[world.accepted(&message, &[endpoint], WAITING)])
            .await;
        world.record(&[world.ended(&message, endpoint, 0, end)]).await;
        for (next, _) in ends {
            world.record(&[world.ended(&message, endpoint, 0, next)]).await;
        }
        world.record(&[world.ended(&message, endpoint, 0, RETRY)]).await;
        let delivery = world.delivery(&message).await;
        assert_eq!((delivery.state, delivery.waiting), (state, None));
    }
    let counts = world.counts(endpoint).await;
    let one_each = EndpointCounts {
        success: 1,
        fail: 1,
        canceled: 1,
        ..EndpointCounts::default()
    };
    assert_eq!(counts, one_each);
}

/// Counters are what the deliveries' states add up to, by the hour of their messages.
pub async fn counters_follow_the_states(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let messages = world.accept_many(endpoint, 20, Disposition::Queued).await;
    let old = world.message_aged(2 * DAY, |_| {});
    let mut batch = vec![world.accepted(&old, &[endpoint], Disposition::Queued)];
    for (n, message) in messages.iter().enumerate() {
        let next = match n % 5 {
            0 => Next::Delivered,
            1 => RETRY,
            2 => FAILED,
            3 => Next::Cancelled(postrider_model::CancelReason::PayloadExpired),
            _ => continue,
        };
        batch.push(world.ended(message, endpoint, 0, next));
    }
    world.record(&batch).await;
    let four_each = EndpointCounts {
        success: 4,
        pending: 5,
        fail: 4,
        sending: 4,
        canceled: 4,
    };
    assert_eq!(world.counts(endpoint).await, four_each);
    let range = crate::TimeRange {
        after: Some(UnixMillis::now().minus(DAY)),
        before: None,
    };
    let recent = must(world.store.endpoint_counts(endpoint, range).await);
    assert_eq!(recent.pending, 4, "the old message is out of the range");
}

/// 410 Gone disables, once, and says so.
pub async fn gone_disables_the_endpoint(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let message = world.message();
    let gone = [
        world.accepted(&message, &[endpoint], Disposition::Leased),
        world.ended(&message, endpoint, 0, Next::Exhausted { gone: true }),
    ];
    let report = world.record(&gone).await;
    assert_eq!(report.disabled, [endpoint]);
    assert_eq!(report.reconfigured, [(world.app, 3)]);
    let found = must(world.store.endpoint(world.app, &EndpointRef::Id(endpoint)).await).expect("there");
    assert!(found.disabled);
    let snapshot = must(world.store.snapshot(&AppRef::Id(world.app)).await).expect("there");
    assert_eq!(snapshot.version, 3);
    assert!(world.record(&gone).await.disabled.is_empty());
}

/// Nothing but failures for more than 5 days disables; a success in between starts anew.
pub async fn days_of_failures_disable_the_endpoint(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let fail = |age: Duration| {
        let message = world.message();
        let mut outcome = world.outcome(&message, endpoint, 0, RETRY);
        if let Some(attempt) = &mut outcome.attempt {
            attempt.started_at = UnixMillis::now().minus(age);
        }
        [
            world.accepted(&message, &[endpoint], Disposition::Leased),
            Record::Outcome(Box::new(outcome)),
        ]
    };
    assert!(world.record(&fail(4 * DAY)).await.disabled.is_empty());
    let message = world.message();
    world
        .record(&[world.ended(&message, endpoint, 0, Next::Delivered)])
        .await;
    assert!(world.record(&fail(SECOND)).await.disabled.is_empty());
    let other = world.endpoint(|_| {}).await.id;
    let failed = |age: Duration| {
        let mut outcome = world.outcome(&world.message(), other, 0, RETRY);
        if let Some(attempt) = &mut outcome.attempt {
            attempt.started_at = UnixMillis::now().minus(age);
        }
        Record::Outcome(Box::new(outcome))
    };
    let late = [failed(6 * DAY)];
    assert!(
        world.record(&late).await.disabled.is_empty(),
        "one failure, recorded late"
    );
    assert_eq!(world.record(&[failed(SECOND)]).await.disabled, [other]);
}

/// A failure that is recorded again, or after its delivery's end, is nothing new about the endpoint.
pub async fn an_old_failure_begins_no_days_of_failures(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let message = world.message();
    let mut outcome = world.outcome(&message, endpoint, 0, RETRY);
    if let Some(attempt) = &mut outcome.attempt {
        attempt.started_at = UnixMillis::now().minus(6 * DAY);
    }
    let mut late = outcome.clone();
    late.attempts = 3;
    let failed = Record::Outcome(Box::new(outcome));
    let first = [
        world.accepted(&message, &[endpoint], Disposition::Leased),
        failed.clone(),
    ];
    assert!(world.record(&first).await.disabled.is_empty());
    let other = world.message();
    world
        .record(&[world.ended(&other, endpoint, 0, Next::Delivered)])
        .await;
    world.record(std::slice::from_ref(&failed)).await;
    let fresh = [world.ended(&world.message(), endpoint, 0, RETRY)];
    assert!(world.record(&fresh).await.disabled.is_empty(), "recorded again");
    let mut delivered = world.outcome(&message, endpoint, 1, Next::Delivered);
    delivered.attempts = 2;
    world.record(&[Record::Outcome(Box::new(delivered))]).await;
    world.record(&[Record::Outcome(Box::new(late))]).await;
    let fresh = [world.ended(&world.message(), endpoint, 0, RETRY)];
    assert!(world.record(&fresh).await.disabled.is_empty(), "after its end");
}

/// Resuming an endpoint begins its days of failures anew; another change does not.
pub async fn a_resumed_endpoint_has_failed_for_no_time(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let fail = async |age: Duration| {
        let mut outcome = world.outcome(&world.message(), endpoint, 0, RETRY);
        if let Some(attempt) = &mut outcome.attempt {
            attempt.started_at = UnixMillis::now().minus(age);
        }
        world.record(&[Record::Outcome(Box::new(outcome))]).await.disabled
    };
    assert!(fail(4 * DAY).await.is_empty());
    // While it is known that it fails since four days ago, what an attempt of six days ago says of it does not count.
    change(&world, endpoint, |endpoint| endpoint.paused = true).await;
    assert!(fail(6 * DAY).await.is_empty());
    change(&world, endpoint, |endpoint| endpoint.url.push('2')).await;
    assert!(fail(6 * DAY).await.is_empty());
    change(&world, endpoint, |endpoint| endpoint.paused = false).await;
    assert!(fail(6 * DAY).await.is_empty());
    assert_eq!(fail(SECOND).await, [endpoint]);
}

/// The policy of an `ordered` endpoint.
pub async fn an_exhausted_delivery_pauses_where_the_policy_says_so(store: SharedStore) {
    let world = World::new(store).await;
    let pausing = world
        .endpoint(|endpoint| {
            endpoint.ordered = true;
            endpoint.on_exhausted = ExhaustedPolicy::Pause;
        })
        .await
        .id;
    let skipping = world.endpoint(|endpoint| endpoint.ordered = true).await.id;
    let message = world.message();
    let both = [pausing, skipping];
    world
        .record(&[world.accepted(&message, &both, Disposition::Ordered)])
        .await;
    let next = world.message();
    world
        .record(&[world.accepted(&next, &both, Disposition::Ordered)])
        .await;
    let report = world
        .record(&[
            world.ended(&message, pausing, 0, FAILED),
            world.ended(&message, skipping, 0, FAILED),
        ])
        .await;
    assert_eq!(report.reconfigured.len(), 1);
    let paused = async |id| {
        must(world.store.endpoint(world.app, &EndpointRef::Id(id)).await)
            .expect("there")
            .paused
    };
    assert!(paused(pausing).await && !paused(skipping).await);
    let jobs = world.take(skipping, 10).await;
    assert_eq!(jobs.len(), 1, "the next one goes on");
    assert!(world.claim().await.iter().all(|due| due.endpoint != pausing));
}

/// The first claim of a key stands until it expires; then the key is free.
pub async fn claims_stand_until_they_expire(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let claim = |key: u8, resource: u8, expires_in: i64| Claim {
        key: [key; 32],
        resource: [resource; 16],
        fingerprint: [resource; 32],
        expires_at: UnixMillis(UnixMillis::now().0 + expires_in),
    };
    let record = async |claims: Vec<Claim>| {
        let mut record = world.accepted(&world.message(), &[endpoint], Disposition::Queued);
        if let Record::Accepted(accepted) = &mut record {
            accepted.claims = claims;
        }
        world.record(&[record]).await;
    };
    assert_eq!(must(world.store.last_claim_ends().await), None);
    let standing = claim(1, 1, 60_000);
    record(vec![standing.clone(), claim(2, 1, -1)]).await;
    assert_eq!(
        must(world.store.last_claim_ends().await),
        Some(standing.expires_at)
    );
    record(vec![claim(1, 2, 60_000), claim(2, 2, 60_000)]).await;
    let found = must(world.store.claims(&[[3; 32], [2; 32], [1; 32]]).await);
    assert_eq!(found.len(), 3);
    assert_eq!(found[0], None);
    assert_eq!(found[1].as_ref().map(|claim| claim.resource), Some([2; 16]));
    assert_eq!(found[2], Some(standing));
}

/// Bodies and responses are bytes: NUL, broken UTF-8, nothing at all.
pub async fn any_bytes_survive(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let every: Vec<u8> = (0..=255).collect();
    let bodies = [
        Bytes::from(every),
        Bytes::from_static(b"\0"),
        Bytes::from_static(b"\xff\xfe \xc3\x28"),
        Bytes::new(),
        Bytes::from(vec![0_u8; 300_000]),
    ];
    for body in bodies {
        let message = world.message_aged(Duration::ZERO, |message| {
            message.payload = body.clone();
            message.content_type = "application/octet-stream".into();
            message.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
            message.channels = vec!["a\"b".into(), "ü".into()];
        });
        let mut outcome = world.outcome(&message, endpoint, 0, Next::Delivered);
        let response = body.slice(..body.len().min(4096));
        let attempt = outcome.attempt.as_mut().expect("an attempt");
        attempt.response = response.clone();
        let attempt = attempt.clone();
        world
            .record(&[
                world.accepted(&message, &[endpoint], Disposition::Leased),
                Record::Outcome(Box::new(outcome)),
            ])
            .await;
        let row = must(world.store.message(world.app, message.id, true).await).expect("recorded");
        assert_eq!(row.message, *message);
        assert!(!row.payload_gone);
        let (content_type, payload) = must(world.store.payload(message.id).await).expect("there");
        assert_eq!(
            (content_type.as_str(), payload),
            ("application/octet-stream", body)
        );
        let row = must(world.store.attempt(world.app, message.id, attempt.id).await).expect("recorded");
        assert_eq!(row.attempt, attempt);
    }
}

/// 10,000 records in one call: 2,500 messages to two endpoints, each with an outcome.
pub async fn a_large_batch_is_recorded_whole(store: SharedStore) {
    const MESSAGES: usize = 2_500;
    let world = World::new(store).await;
    let endpoints = [world.endpoint(|_| {}).await.id, world.endpoint(|_| {}).await.id];
    let mut batch = Vec::new();
    for n in 0..MESSAGES {
        let message = world.message();
        batch.push(world.accepted(&message, &endpoints, Disposition::Leased));
        batch.push(world.ended(&message, endpoints[0], 0, Next::Delivered));
        let next = if n % 2 == 0 { RETRY } else { FAILED };
        batch.push(world.ended(&message, endpoints[1], 0, next));
        batch.push(world.ended(&message, endpoints[1], 0, next));
    }
    assert_eq!(batch.len(), 10_000);
    let report = world.record(&batch).await;
    assert_eq!((report.messages, report.attempts), (MESSAGES, 3 * MESSAGES));
    assert_eq!(world.counts(endpoints[0]).await.success, 2_500);
    let counts = world.counts(endpoints[1]).await;
    assert_eq!((counts.sending, counts.fail), (1_250, 1_250));
    let (waiting, _) = must(world.store.waiting_counts().await);
    assert_eq!(
        waiting
            .iter()
            .map(|count| (count.reason, count.count))
            .collect::<Vec<_>>(),
        [(DeferReason::Retry, 1_250)]
    );
}

/// Batches at the same time, about the same endpoint and partly about the same deliveries.
pub async fn concurrent_batches_do_not_disturb_each_other(store: SharedStore) {
    const TASKS: usize = 8;
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let shared: Vec<_> = (0..20).map(|_| world.message()).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let mut batch = Vec::new();
        for message in &shared {
            batch.push(world.accepted(message, &[endpoint], Disposition::Leased));
            batch.push(world.ended(message, endpoint, 0, Next::Delivered));
        }
        for _ in 0..10 {
            batch.push(world.accepted(&world.message(), &[endpoint], Disposition::Queued));
        }
        let store = world.store.clone();
        tasks.spawn(async move { store.record(&batch).await });
    }
    let mut messages = 0;
    while let Some(done) = tasks.join_next().await {
        messages += must(done.expect("no panic")).messages;
    }
    assert_eq!(messages, shared.len() + TASKS * 10);
    let counts = world.counts(endpoint).await;
    assert_eq!((counts.success, counts.pending), (20, 80));
    let other = world.id(AppId::generate);
    let page = super::fixture::first(250);
    let none = must(
        world
            .store
            .messages(other, &MessageFilter::default(), &page)
            .await,
    );
    assert!(none.rows.is_empty());
    let filter = AttemptFilter {
        endpoint: Some(endpoint),
        ..AttemptFilter::default()
    };
    let attempts = must(
        world
            .store
            .attempts(world.app, &filter, &super::fixture::first(250))
            .await,
    );
    assert_eq!(
        attempts.rows.len(),
        TASKS * 20,
        "each task made attempts of its own, and each is kept"
    );
}

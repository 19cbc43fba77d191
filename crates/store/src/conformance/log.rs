//! Checks of `LogStore`; those of its lists of deliveries are in `deliveries`.

use std::sync::Arc;
use std::time::Duration;

use postrider_model::{
    AppId, AttemptClass, AttemptId, DeliveryId, DeliveryState, Disposition, EndpointId, Message, MessageId,
    Next, Record, UnixMillis,
};

use super::fixture::{HOUR, RETRY, SECOND, WAITING, World, first, must};
use crate::{AttemptFilter, MessageFilter, Page, SharedStore, TimeRange};

fn ids(messages: &[Arc<Message>]) -> Vec<MessageId> {
    let mut ids: Vec<_> = messages.iter().map(|message| message.id).collect();
    ids.sort_unstable();
    ids
}

/// 500 messages, page by page, newest first and back again: each once, none left out.
pub async fn five_hundred_messages_page_both_ways(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let mut expected = ids(&world.accept_many(endpoint, 500, Disposition::Queued).await);
    expected.reverse();
    let list = async |after: Option<MessageId>, backwards: bool| {
        let page = Page {
            after,
            backwards,
            descending: true,
            limit: 60,
        };
        let filter = MessageFilter::default();
        let rows = must(world.store.messages(world.app, &filter, &page).await).rows;
        rows.iter().map(|row| row.message.id).collect::<Vec<_>>()
    };
    let mut seen = Vec::new();
    loop {
        let mut rows = list(seen.last().copied(), false).await;
        let more = rows.len() > 60;
        rows.truncate(60);
        seen.extend(rows);
        if !more {
            break;
        }
    }
    assert_eq!(seen, expected);
    let mut back = vec![expected[499]];
    loop {
        let rows = list(Some(back[0]), true).await;
        let more = rows.len() > 60;
        let rows = &rows[usize::from(more)..];
        back.splice(0..0, rows.iter().copied());
        if !more {
            break;
        }
    }
    assert_eq!(back, expected);
}

/// By type, channel and time; payloads only when asked for.
pub async fn messages_are_filtered(store: SharedStore) {
    let world = World::new(store).await;
    let mut batch = Vec::new();
    let mut messages = Vec::new();
    for n in 0..40_u32 {
        let message = world.message_aged(n * 60 * SECOND, |message| {
            message.event_type = ["a.one", "a.two", "b"][(n % 3) as usize].into();
            message.channels = if n % 2 == 0 {
                vec!["eu".into(), "x".into()]
            } else {
                vec![]
            };
        });
        batch.push(world.accepted(&message, &[], Disposition::Queued));
        messages.push(message);
    }
    world.record(&batch).await;
    let list = async |filter: &MessageFilter| {
        let rows = must(world.store.messages(world.app, filter, &first(250)).await).rows;
        rows.iter().map(|row| row.message.id).collect::<Vec<_>>()
    };
    let matching = |keep: &dyn Fn(&Message) -> bool| {
        let mut ids: Vec<_> = messages
            .iter()
            .filter(|message| keep(message))
            .map(|message| message.id)
            .collect();
        ids.sort_unstable();
        ids
    };
    let types = MessageFilter {
        event_types: vec!["a.two".into(), "b".into()],
        ..MessageFilter::default()
    };
    assert_eq!(
        list(&types).await,
        matching(&|message| message.event_type != "a.one")
    );
    let channel = MessageFilter {
        channel: Some("eu".into()),
        event_types: vec!["b".into()],
        ..MessageFilter::default()
    };
    let expected = matching(&|message| message.event_type == "b" && !message.channels.is_empty());
    assert_eq!(list(&channel).await, expected);
    let (after, before) = (messages[30].id.created_at(), messages[10].id.created_at());
    let range = MessageFilter {
        range: TimeRange {
            after: Some(after),
            before: Some(before),
        },
        ..MessageFilter::default()
    };
    let expected = matching(&|message| {
        let at = message.id.created_at();
        at > after && at < before
    });
    assert_eq!(expected.len(), 19);
    assert_eq!(list(&range).await, expected);
    let rows = must(world.store.messages(world.app, &types, &first(1)).await).rows;
    assert!(rows[0].message.payload.is_empty() && !rows[0].payload_gone);
    let with = MessageFilter {
        with_payload: true,
        ..types
    };
    let rows = must(world.store.messages(world.app, &with, &first(1)).await).rows;
    assert_eq!(rows.len(), 2, "one more than asked for: there are more");
    assert!(rows.iter().all(|row| &row.message.payload[..] == b"{\"n\":1}"));
}

/// Attempts of several kinds at two endpoints.
async fn attempt_world(world: &World, endpoints: [EndpointId; 2]) -> Vec<Arc<Message>> {
    let mut batch = Vec::new();
    let mut messages = Vec::new();
    for n in 0..10_u16 {
        let message = world.message_aged(Duration::ZERO, |message| {
            message.event_type = if n < 5 { "low" } else { "high" }.into();
            message.channels = if n == 0 { vec!["eu".into()] } else { vec![] };
        });
        batch.push(world.accepted(&message, &endpoints, WAITING));
        for endpoint in endpoints {
            let next = if n % 2 == 0 { Next::Delivered } else { RETRY };
            let mut outcome = world.outcome(&message, endpoint, 0, next);
            let started_at = UnixMillis::now().minus(u32::from(n) * HOUR);
            let attempt = outcome.attempt.as_mut().expect("an attempt");
            attempt.id = world.id(|_, rng| AttemptId::generate(started_at, rng));
            attempt.started_at = started_at;
            (attempt.class, attempt.status) = match n % 4 {
                1 => (AttemptClass::Status, 503),
                3 => (AttemptClass::Timeout, 0),
                _ => (AttemptClass::Success, 201),
            };
            batch.push(Record::Outcome(Box::new(outcome)));
        }
        messages.push(message);
    }
    world.record(&batch).await;
    messages
}

/// By endpoint, message, success, status, type, channel and time.
pub async fn attempts_are_filtered(store: SharedStore) {
    let world = World::new(store).await;
    let endpoints = [world.endpoint(|_| {}).await.id, world.endpoint(|_| {}).await.id];
    let messages = attempt_world(&world, endpoints).await;
    let count = async |filter: AttemptFilter| {
        let rows = must(world.store.attempts(world.app, &filter, &first(250)).await).rows;
        assert!(rows.is_sorted_by_key(|row| row.attempt.id));
        rows.len()
    };
    let mine = AttemptFilter {
        endpoint: Some(endpoints[0]),
        ..AttemptFilter::default()
    };
    assert_eq!(count(mine.clone()).await, 10);
    let of_message = AttemptFilter {
        message: Some(messages[1].id),
        ..AttemptFilter::default()
    };
    assert_eq!(count(of_message.clone()).await, 2);
    let both = AttemptFilter {
        endpoint: Some(endpoints[1]),
        ..of_message
    };
    assert_eq!(count(both).await, 1);
    for (success, expected) in [(true, 5), (false, 5)] {
        let filter = AttemptFilter {
            success: Some(success),
            ..mine.clone()
        };
        assert_eq!(count(filter).await, expected);
    }
    for (class, expected) in [(2, 5), (5, 3), (0, 2), (4, 0)] {
        let filter = AttemptFilter {
            status_class: Some(class),
            ..mine.clone()
        };
        assert_eq!(count(filter).await, expected, "status class {class}");
    }
    let by_type = AttemptFilter {
        event_types: vec!["high".into()],
        success: Some(false),
        ..mine.clone()
    };
    assert_eq!(count(by_type).await, 3);
    let by_channel = AttemptFilter {
        channel: Some("eu".into()),
        ..mine.clone()
    };
    assert_eq!(count(by_channel).await, 1);
    let now = UnixMillis::now();
    let by_time = AttemptFilter {
        range: TimeRange {
            after: Some(now.minus(HOUR * 5 + HOUR / 2)),
            before: Some(now.minus(HOUR / 2)),
        },
        ..mine
    };
    assert_eq!(count(by_time).await, 5);
}

/// Newest first, forwards and backwards.
pub async fn attempts_page(store: SharedStore) {
    let world = World::new(store).await;
    let endpoints = [world.endpoint(|_| {}).await.id, world.endpoint(|_| {}).await.id];
    attempt_world(&world, endpoints).await;
    let filter = AttemptFilter {
        endpoint: Some(endpoints[0]),
        ..AttemptFilter::default()
    };
    let list = async |after: Option<AttemptId>, backwards: bool| {
        let page = Page {
            after,
            backwards,
            descending: true,
            limit: 4,
        };
        let rows = must(world.store.attempts(world.app, &filter, &page).await).rows;
        rows.iter().map(|row| row.attempt.id).collect::<Vec<_>>()
    };
    let one = list(None, false).await;
    let two = list(Some(one[3]), false).await;
    let three = list(Some(two[3]), false).await;
    assert_eq!((one.len(), two.len(), three.len()), (5, 5, 2));
    assert_eq!((one[4], two[4]), (two[0], three[0]));
    assert!(
        one[..4]
            .iter()
            .chain(&two[..4])
            .chain(&three)
            .is_sorted_by(|a, b| a > b)
    );
    assert_eq!(list(Some(three[0]), true).await, [&one[3..4], &two[..4]].concat());
}

/// By id and by `eventId`, within the application only.
pub async fn one_message_and_one_attempt_are_found(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let named =
        |age: u32| world.message_aged(age * HOUR, |message| message.event_id = Some("order-1".into()));
    let (old, new) = (named(30), named(1));
    let outcome = world.outcome(&new, endpoint, 0, RETRY);
    let attempt = outcome.attempt.clone().expect("an attempt");
    world
        .record(&[
            world.accepted(&new, &[endpoint], WAITING),
            world.accepted(&old, &[endpoint], WAITING),
            Record::Outcome(Box::new(outcome)),
        ])
        .await;
    let store = &world.store;
    let found = must(store.message_by_event_id(world.app, "order-1", true).await).expect("found");
    assert_eq!(found.message, *new, "the newest");
    assert!(must(store.message_by_event_id(world.app, "order-2", false).await).is_none());
    let row = must(store.attempt(world.app, new.id, attempt.id).await).expect("found");
    assert_eq!(
        (row.delivery, row.endpoint),
        (DeliveryId::derive(new.id, endpoint), endpoint)
    );
    assert_eq!(row.attempt, attempt);
    assert!(must(store.attempt(world.app, old.id, attempt.id).await).is_none());

    let other = world.id(AppId::generate);
    assert!(must(store.message(other, new.id, false).await).is_none());
    assert!(must(store.message_by_event_id(other, "order-1", false).await).is_none());
    assert!(must(store.attempt(other, new.id, attempt.id).await).is_none());
    assert!(!must(store.expunge_payload(other, new.id).await));
    assert!(!must(store.expunge_attempt(other, new.id, attempt.id).await));
    assert!(must(store.deliveries_of_message(other, new.id, &first(10)).await).is_empty());
}

/// Bytes go, records stay; what waits for them is cancelled.
pub async fn expunging_removes_bytes_and_nothing_else(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let message = world.message();
    let outcome = world.outcome(&message, endpoint, 0, RETRY);
    let attempt = outcome.attempt.clone().expect("an attempt");
    world
        .record(&[
            world.accepted(&message, &[endpoint], WAITING),
            Record::Outcome(Box::new(outcome)),
        ])
        .await;
    let store = &world.store;
    assert!(must(
        store.expunge_attempt(world.app, message.id, attempt.id).await
    ));
    let row = must(store.attempt(world.app, message.id, attempt.id).await).expect("the record stays");
    assert!(row.attempt.response.is_empty());
    assert_eq!((row.attempt.status, row.attempt.url), (500, attempt.url));

    assert!(must(store.expunge_payload(world.app, message.id).await));
    let row = must(store.message(world.app, message.id, true).await).expect("the record stays");
    assert!(row.payload_gone && row.message.payload.is_empty());
    assert_eq!(row.message.event_type, message.event_type);
    let delivery = world.delivery(&message).await;
    assert_eq!(
        (delivery.state, delivery.waiting),
        (DeliveryState::Cancelled, None)
    );
    let unknown = world.message();
    assert!(!must(store.expunge_payload(world.app, unknown.id).await));
}

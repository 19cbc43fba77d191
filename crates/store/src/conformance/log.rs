//! Checks of `LogStore`.

use std::sync::Arc;
use std::time::Duration;

use postrider_model::{
    AppId, AttemptClass, AttemptId, DeliveryId, DeliveryState, Disposition, EndpointId, Message, MessageId,
    Next, Record, UnixMillis,
};

use super::fixture::{FAILED, HOUR, RETRY, SECOND, WAITING, World, first, must};
use crate::{AttemptFilter, DeliveryFilter, MessageFilter, Page, SharedStore, TimeRange};

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
        let rows = must(world.store.messages(world.app, &filter, &page).await);
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
        let rows = must(world.store.messages(world.app, filter, &first(250)).await);
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
    let rows = must(world.store.messages(world.app, &types, &first(1)).await);
    assert!(rows[0].message.payload.is_empty() && !rows[0].payload_gone);
    let with = MessageFilter {
        with_payload: true,
        ..types
    };
    let rows = must(world.store.messages(world.app, &with, &first(1)).await);
    assert_eq!(rows.len(), 2, "one more than asked for: there are more");
    assert!(rows.iter().all(|row| &row.message.payload[..] == b"{\"n\":1}"));
}

/// By state, type, channel and time, with their messages.
pub async fn deliveries_of_an_endpoint_are_filtered(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let other = world.endpoint(|_| {}).await.id;
    let mut batch = Vec::new();
    let mut messages = Vec::new();
    for n in 0..12_u32 {
        let message = world.message_aged(n * 60 * SECOND, |message| {
            message.event_type = if n < 6 { "young" } else { "old" }.into();
            message.channels = vec![format!("c{}", n % 2)];
        });
        batch.push(world.accepted(&message, &[endpoint, other], WAITING));
        match n % 3 {
            0 => batch.push(world.ended(&message, endpoint, 0, Next::Delivered)),
            1 => batch.push(world.ended(&message, endpoint, 0, FAILED)),
            _ => {}
        }
        messages.push(message);
    }
    world.record(&batch).await;
    let list = async |filter: DeliveryFilter| {
        let rows = world
            .store
            .deliveries_of_endpoint(world.app, endpoint, &filter, &first(250), true)
            .await;
        let rows = must(rows);
        for (delivery, message) in &rows {
            assert_eq!(
                (delivery.endpoint, delivery.message),
                (endpoint, message.message.id)
            );
            assert!(!message.message.payload.is_empty());
            assert_eq!(
                delivery.waiting.is_some(),
                delivery.state == DeliveryState::Pending
            );
        }
        assert!(rows.is_sorted_by_key(|(delivery, _)| delivery.message));
        rows.len()
    };
    assert_eq!(list(DeliveryFilter::default()).await, 12);
    let states = vec![DeliveryState::Delivered, DeliveryState::Exhausted];
    let by_state = DeliveryFilter {
        states,
        ..DeliveryFilter::default()
    };
    assert_eq!(list(by_state.clone()).await, 8);
    let by_type = DeliveryFilter {
        event_types: vec!["young".into()],
        ..by_state
    };
    assert_eq!(list(by_type.clone()).await, 4);
    let by_channel = DeliveryFilter {
        channel: Some("c0".into()),
        ..by_type
    };
    assert_eq!(list(by_channel).await, 2);
    let by_time = DeliveryFilter {
        range: TimeRange {
            after: Some(messages[4].id.created_at()),
            before: None,
        },
        ..DeliveryFilter::default()
    };
    assert_eq!(list(by_time).await, 4);
    let page = Page {
        after: Some((messages[3].id, DeliveryId::derive(messages[3].id, endpoint))),
        descending: true,
        ..first(2)
    };
    let rows = world
        .store
        .deliveries_of_endpoint(world.app, endpoint, &DeliveryFilter::default(), &page, false)
        .await;
    let rows: Vec<_> = must(rows).iter().map(|(row, _)| row.message).collect();
    assert_eq!(rows, [messages[4].id, messages[5].id, messages[6].id]);
}

/// By endpoint, from any place.
pub async fn deliveries_of_a_message_page(store: SharedStore) {
    let world = World::new(store).await;
    let mut endpoints = Vec::new();
    for _ in 0..9 {
        endpoints.push(world.endpoint(|_| {}).await.id);
    }
    endpoints.sort_unstable();
    let message = world.message();
    world
        .record(&[world.accepted(&message, &endpoints, WAITING)])
        .await;
    let list = async |after: Option<EndpointId>| {
        let after = after.map(|endpoint| (endpoint, DeliveryId::derive(message.id, endpoint)));
        let page = Page { after, ..first(4) };
        let rows = world
            .store
            .deliveries_of_message(world.app, message.id, &page)
            .await;
        must(rows).iter().map(|row| row.endpoint).collect::<Vec<_>>()
    };
    assert_eq!(list(None).await, endpoints[..5]);
    assert_eq!(list(Some(endpoints[3])).await, endpoints[4..9]);
    assert_eq!(list(Some(endpoints[8])).await, []);
}

/// An automatic delivery and two by hand of one message to one endpoint, among others: one by one, forth and back, up
/// and down, each comes once. A cursor that names no row is a place between rows.
pub async fn deliveries_of_one_message_to_one_endpoint_page(store: SharedStore) {
    let world = World::new(store).await;
    let mut endpoints = [(); 3].map(|()| world.id(EndpointId::generate));
    endpoints.sort_unstable();
    for id in endpoints {
        world.endpoint(|endpoint| endpoint.id = id).await;
    }
    let messages = [3, 2, 1].map(|age| world.message_aged(age * SECOND, |_| {}));
    let mut batch: Vec<Record> = messages
        .iter()
        .map(|message| world.accepted(message, &endpoints, WAITING))
        .collect();
    batch.extend([b"one", b"two"].map(|nonce| world.by_hand(&messages[1], endpoints[1], nonce)));
    world.record(&batch).await;

    let of_endpoint = async |page: Page<(MessageId, DeliveryId)>| {
        let filter = DeliveryFilter::default();
        let rows = world
            .store
            .deliveries_of_endpoint(world.app, endpoints[1], &filter, &page, false)
            .await;
        let rows = must(rows).into_iter();
        rows.map(|(row, _)| (row.message, row.id)).collect::<Vec<_>>()
    };
    let of_message = async |page: Page<(EndpointId, DeliveryId)>| {
        let rows = world
            .store
            .deliveries_of_message(world.app, messages[1].id, &page)
            .await;
        let rows = must(rows).into_iter();
        rows.map(|row| (row.endpoint, row.id)).collect::<Vec<_>>()
    };
    walk_one_by_one(of_endpoint).await;
    let rows = walk_one_by_one(of_message).await;
    let behind = DeliveryId::from_slice(&[0xff; 16]).expect("16 bytes");
    for (after, descending, next) in [
        (behind, false, rows[4]),
        (DeliveryId::floor(UnixMillis(0)), true, rows[0]),
    ] {
        let page = Page {
            after: Some((endpoints[1], after)),
            descending,
            ..first(1)
        };
        assert_eq!(of_message(page).await, [next]);
    }
}

/// Walks a list of five rows in pages of one, each way, and returns it.
async fn walk_one_by_one<C: Copy + Ord + std::fmt::Debug>(list: impl AsyncFn(Page<C>) -> Vec<C>) -> Vec<C> {
    let all = list(first(250)).await;
    assert_eq!(all.len(), 5);
    assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
    for descending in [false, true] {
        for backwards in [false, true] {
            let mut expected = all.clone();
            if descending != backwards {
                expected.reverse();
            }
            let mut seen: Vec<C> = Vec::new();
            loop {
                let page = Page {
                    after: seen.last().copied(),
                    backwards,
                    descending,
                    limit: 1,
                };
                let rows = list(page).await;
                assert!(rows.len() <= 2, "{rows:?}");
                // The extra row is the farthest from the cursor.
                let Some(next) = (if backwards { rows.last() } else { rows.first() }) else {
                    break;
                };
                seen.push(*next);
                assert!(seen.len() <= expected.len(), "{seen:?}");
            }
            assert_eq!(seen, expected, "descending {descending}, backwards {backwards}");
        }
    }
    all
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
        let rows = must(world.store.attempts(world.app, &filter, &first(250)).await);
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
        let rows = must(world.store.attempts(world.app, &filter, &page).await);
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

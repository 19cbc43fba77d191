//! Checks of the lists of deliveries: of an endpoint and of a message, filtered and in pages.

use postrider_model::{DeliveryId, DeliveryState, EndpointId, MessageId, Next, Record, UnixMillis};

use super::fixture::{FAILED, SECOND, WAITING, World, first, must};
use crate::{DeliveryFilter, Page, SharedStore, TimeRange};

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
        let rows = must(rows).rows;
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
    let rows: Vec<_> = must(rows).rows.iter().map(|(row, _)| row.message).collect();
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
        let rows = must(rows).rows.into_iter();
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

//! Checks of pages that end before they are full: at their bytes, or at the rows that a filter looked at.

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use postrider_model::{
    AttemptId, DeliveryId, DeliveryState, Disposition, EndpointId, MessageId, Next, Record,
};

use super::fixture::{FAILED, WAITING, World, first, must};
use crate::{
    AttemptFilter, AttemptRow, DeliveryFilter, DeliveryRow, MessageFilter, MessageRow, PAGE_LOOKED_ROWS,
    PAGE_PAYLOAD_BYTES, Page, Part, SharedStore,
};

/// A page ends where its payloads reach their bytes, and the next one goes on from there, both ways.
pub async fn a_page_of_large_payloads_is_cut(store: SharedStore) {
    const LARGE: usize = PAGE_PAYLOAD_BYTES / 4;
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    for _ in 0..6 {
        let message = world.message_aged(Duration::ZERO, |message| {
            message.payload = Bytes::from(vec![b'1'; LARGE]);
        });
        world
            .record(&[world.accepted(&message, &[endpoint], WAITING)])
            .await;
    }
    let filter = MessageFilter {
        with_payload: true,
        ..MessageFilter::default()
    };
    for backwards in [false, true] {
        let mut page = Page {
            backwards,
            ..first(50)
        };
        let mut ids = Vec::new();
        for expected in [4, 2] {
            let Part { mut rows, cut } = must(world.store.messages(world.app, &filter, &page).await);
            assert_eq!(rows.len(), expected, "backwards: {backwards}");
            assert!(rows.iter().all(|row| row.message.payload.len() == LARGE));
            if backwards {
                rows.reverse();
            }
            ids.extend(rows.iter().map(|row| row.message.id));
            page.after = ids.last().copied();
            assert_eq!(cut, page.after.filter(|_| expected == 4));
        }
        assert_eq!(ids.len(), 6);
        assert!(ids.is_sorted() || ids.iter().rev().is_sorted());
        let page = first(50);
        let filter = DeliveryFilter::default();
        let of_endpoint = world
            .store
            .deliveries_of_endpoint(world.app, endpoint, &filter, &page, true);
        assert_eq!(must(of_endpoint.await).rows.len(), 4);
    }
}

/// The same for what is parked, newest first.
pub async fn a_page_of_large_parked_rows_is_cut(store: SharedStore) {
    const LARGE: usize = PAGE_PAYLOAD_BYTES / 2;
    for n in 0..3 {
        assert!(must(
            store.park("frame", "large", &Bytes::from(vec![n; LARGE])).await
        ));
    }
    let (mut before, mut firsts) = (None, Vec::new());
    for expected in [2, 1] {
        let Part { rows, cut } = must(store.parked(250, before).await);
        assert_eq!(rows.len(), expected);
        assert_eq!(cut.is_some(), expected == 2);
        firsts.extend(rows.iter().map(|row| row.bytes[0]));
        before = cut;
    }
    assert_eq!(firsts, [2, 1, 0]);
}

/// What the filters of [`a_filter_that_keeps_little_ends_its_page`] keep, in ascending order.
#[derive(Default)]
struct Rare {
    messages: Vec<MessageId>,
    deliveries: Vec<(MessageId, DeliveryId)>,
    attempts: Vec<AttemptId>,
}

/// More messages than a page looks at, each delivered at once but for three: the oldest, one near to it, the newest.
async fn few_among_many(world: &World, endpoint: EndpointId) -> Rare {
    const MANY: usize = PAGE_LOOKED_ROWS + 200;
    let mut rare = Rare::default();
    let mut batch = Vec::new();
    for n in 0..MANY {
        let is_rare = [0, 100, MANY - 1].contains(&n);
        let age = Duration::from_millis((MANY - n).try_into().expect("a small number"));
        let message = world.message_aged(age, |message| {
            message.event_type = if is_rare { "rare" } else { "common" }.into();
        });
        let next = if is_rare { FAILED } else { Next::Delivered };
        let outcome = world.outcome(&message, endpoint, 0, next);
        if is_rare {
            rare.messages.push(message.id);
            rare.deliveries.push((message.id, outcome.delivery));
            rare.attempts
                .extend(outcome.attempt.as_ref().map(|attempt| attempt.id));
        }
        batch.push(world.accepted(&message, &[endpoint], Disposition::Queued));
        batch.push(Record::Outcome(Box::new(outcome)));
        if batch.len() >= 2_000 || n + 1 == MANY {
            world.record(&batch).await;
            batch.clear();
        }
    }
    rare.attempts.sort_unstable();
    rare
}

/// Walks a list each way in pages of two: each of the rows comes once, whether or not a page was cut before it.
async fn walk_cut<R, C: Copy + PartialEq + Debug>(
    list: impl AsyncFn(Page<C>) -> Part<R, C>,
    place: impl Fn(&R) -> C,
    rows: &[C],
) {
    for (descending, backwards) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut page = Page {
            descending,
            backwards,
            ..first(2)
        };
        let (mut found, mut cuts) = (Vec::new(), 0);
        loop {
            let Part { mut rows, cut } = list(page.clone()).await;
            if backwards {
                rows.reverse();
            }
            let is_full = rows.len() > 2;
            rows.truncate(2);
            found.extend(rows.iter().map(&place));
            page.after = match cut {
                Some(cut) => {
                    assert!(!is_full, "a full page is not cut");
                    cuts += 1;
                    Some(cut)
                }
                None if is_full => found.last().copied(),
                None => break,
            };
            assert!(cuts <= PAGE_LOOKED_ROWS, "each page comes further");
        }
        let mut expected = rows.to_vec();
        if descending != backwards {
            expected.reverse();
        }
        assert_eq!(found, expected, "descending {descending}, backwards {backwards}");
        assert!(cuts > 0, "a page looks at no more rows than it may");
    }
}

/// A filter that keeps nothing, or a few rows of many: pages end after so many rows were looked at, with what was found,
/// and go on from there. Without a filter none is cut.
pub async fn a_filter_that_keeps_little_ends_its_page(store: SharedStore) {
    let world = World::new(store).await;
    let endpoint = world.endpoint(|_| {}).await.id;
    let rare = few_among_many(&world, endpoint).await;
    let messages = async |event_types: &[&str], page: Page<_>| {
        let filter = MessageFilter {
            event_types: event_types.iter().map(ToString::to_string).collect(),
            ..MessageFilter::default()
        };
        must(world.store.messages(world.app, &filter, &page).await)
    };
    let id = |row: &MessageRow| row.message.id;
    walk_cut(async |page| messages(&["rare"], page).await, id, &rare.messages).await;
    walk_cut(async |page| messages(&["none"], page).await, id, &[]).await;
    let any = messages(&[], first(250)).await;
    assert_eq!((any.rows.len(), any.cut), (251, None));

    let deliveries = async |states: &[DeliveryState], page: Page<_>| {
        let filter = DeliveryFilter {
            states: states.to_vec(),
            ..DeliveryFilter::default()
        };
        let listed = world
            .store
            .deliveries_of_endpoint(world.app, endpoint, &filter, &page, true);
        must(listed.await)
    };
    let place = |(row, _): &(DeliveryRow, MessageRow)| (row.message, row.id);
    let failed = [DeliveryState::Exhausted];
    walk_cut(
        async |page| deliveries(&failed, page).await,
        place,
        &rare.deliveries,
    )
    .await;
    let pending = [DeliveryState::Pending];
    walk_cut(async |page| deliveries(&pending, page).await, place, &[]).await;
    assert_eq!(deliveries(&[], first(250)).await.cut, None);

    let attempts = async |success: Option<bool>, status_class: Option<u16>, page: Page<_>| {
        let filter = AttemptFilter {
            endpoint: Some(endpoint),
            success,
            status_class,
            ..AttemptFilter::default()
        };
        must(world.store.attempts(world.app, &filter, &page).await)
    };
    let id = |row: &AttemptRow| row.attempt.id;
    walk_cut(
        async |page| attempts(Some(false), None, page).await,
        id,
        &rare.attempts,
    )
    .await;
    walk_cut(async |page| attempts(None, Some(3), page).await, id, &[]).await;
    assert_eq!(attempts(None, None, first(250)).await.cut, None);
}

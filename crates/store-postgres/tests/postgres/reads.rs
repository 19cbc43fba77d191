//! The statements behind lists of messages, deliveries and attempts: each filter and order once.

use std::sync::Arc;
use std::time::Duration;

use postrider_model::{Attempt, Disposition, Message, Next, UnixMillis};
use postrider_store::{
    AttemptFilter, ConfigStore, DeliveryFilter, LogStore, MessageFilter, Page, RecordStore, StoreError,
    TimeRange,
};
use postrider_store_postgres::{PostgresStore, Settings};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::world::{DAY, World, page};

/// Ten messages a second apart, every other one with a channel and a type of its own, all delivered at once.
async fn ten(world: &World) -> Vec<Arc<Message>> {
    let start = UnixMillis::now().minus(Duration::from_secs(60));
    let mut messages = Vec::new();
    let mut batch = Vec::new();
    for n in 0..10 {
        let mut message = (*world.message(start.plus(Duration::from_secs(n)))).clone();
        if n % 2 == 1 {
            message.channels = vec!["eu".into(), "b2b".into()];
            message.event_type = "odd".into();
        }
        let message = Arc::new(message);
        batch.push(world.accepted(&message, Disposition::Queued));
        let next = if n < 4 {
            Next::Retry { delay: DAY }
        } else {
            Next::Delivered
        };
        batch.push(world.outcome(&message, 0, 1, next));
        messages.push(message);
    }
    world.store.record(&batch).await.unwrap();
    messages
}

#[tokio::test]
async fn messages_page_both_ways_and_filter() {
    let world = World::new().await;
    let all = ten(&world).await;
    let ids = async |filter: &MessageFilter, page: &Page<_>| -> Vec<usize> {
        let found = world.store.messages(world.app, filter, page).await.unwrap();
        let rows = found.rows.iter();
        rows.map(|row| {
            all.iter()
                .position(|message| message.id == row.message.id)
                .unwrap()
        })
        .collect()
    };
    let any = MessageFilter::default();
    assert_eq!(ids(&any, &page(None, false, true, 3)).await, [9, 8, 7, 6]);
    assert_eq!(
        ids(&any, &page(Some(all[7].id), false, true, 3)).await,
        [6, 5, 4, 3]
    );
    assert_eq!(
        ids(&any, &page(Some(all[3].id), true, true, 3)).await,
        [7, 6, 5, 4]
    );
    assert_eq!(ids(&any, &page(Some(all[8].id), true, true, 3)).await, [9]);
    assert_eq!(ids(&any, &page(Some(all[7].id), false, false, 3)).await, [8, 9]);
    let odd = MessageFilter {
        event_types: vec!["odd".into()],
        channel: Some("b2b".into()),
        range: TimeRange {
            after: Some(all[1].id.created_at()),
            before: Some(all[7].id.created_at()),
        },
        with_payload: true,
    };
    assert_eq!(ids(&odd, &page(None, false, true, 10)).await, [5, 3]);
    let row = world
        .store
        .message(world.app, all[1].id, true)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&row.message, all[1].as_ref());
}

#[tokio::test]
async fn deliveries_and_attempts_filter() {
    let world = World::new().await;
    let all = ten(&world).await;
    let filter = DeliveryFilter {
        states: vec![postrider_model::DeliveryState::Retrying],
        event_types: vec!["odd".into()],
        channel: Some("eu".into()),
        range: TimeRange::default(),
    };
    let rows = world
        .store
        .deliveries_of_endpoint(
            world.app,
            world.endpoint,
            &filter,
            &page(None, false, true, 10),
            true,
        )
        .await
        .unwrap()
        .rows;
    let found: Vec<_> = rows.iter().map(|(delivery, _)| delivery.message).collect();
    assert_eq!(found, [all[3].id, all[1].id]);
    assert!(rows.iter().all(|(delivery, message)| delivery.waiting.is_some()
        && delivery.attempts == 1
        && message.message.payload == all[0].payload));

    let count = async |filter: AttemptFilter| -> usize {
        let rows = world
            .store
            .attempts(world.app, &filter, &page(None, false, true, 50))
            .await;
        rows.unwrap().rows.len()
    };
    let of_endpoint = || AttemptFilter {
        endpoint: Some(world.endpoint),
        ..AttemptFilter::default()
    };
    assert_eq!(count(of_endpoint()).await, 10);
    assert_eq!(
        count(AttemptFilter {
            success: Some(true),
            ..of_endpoint()
        })
        .await,
        6
    );
    assert_eq!(
        count(AttemptFilter {
            status_class: Some(5),
            ..of_endpoint()
        })
        .await,
        4
    );
    assert_eq!(
        count(AttemptFilter {
            status_class: Some(0),
            ..of_endpoint()
        })
        .await,
        0
    );
    assert_eq!(
        count(AttemptFilter {
            channel: Some("eu".into()),
            ..of_endpoint()
        })
        .await,
        5
    );
    assert_eq!(
        count(AttemptFilter {
            message: Some(all[0].id),
            ..of_endpoint()
        })
        .await,
        1
    );
    let rows = world
        .store
        .attempts(
            world.app,
            &AttemptFilter {
                message: Some(all[5].id),
                ..AttemptFilter::default()
            },
            &page(None, false, true, 5),
        )
        .await
        .unwrap()
        .rows;
    let Attempt { id, response, .. } = rows[0].attempt.clone();
    assert_eq!(response.as_ref(), b"\0\xff");
    assert!(
        world
            .store
            .expunge_attempt(world.app, all[5].id, id)
            .await
            .unwrap()
    );
    let expunged = world
        .store
        .attempt(world.app, all[5].id, id)
        .await
        .unwrap()
        .unwrap();
    assert!(expunged.attempt.response.is_empty());
    assert!(
        world
            .store
            .attempt(world.app, all[4].id, id)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_statement_that_runs_into_its_limit_was_slow() {
    let world = World::new().await;
    let store = PostgresStore::connect(Settings {
        read_timeout: Duration::from_millis(200),
        ..Settings::new(world.database.url().into(), world.keyring.clone())
    })
    .unwrap();
    let mut other = PgConnection::connect(world.database.url()).await.unwrap();
    let mut held = other.begin().await.unwrap();
    held.execute("LOCK TABLE event_types").await.unwrap();
    let read = store.event_type("any").await;
    assert!(matches!(read, Err(StoreError::Slow(_))), "{read:?}");
    held.rollback().await.unwrap();
    assert!(store.event_type("any").await.unwrap().is_none());
}

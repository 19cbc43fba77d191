//! The in-process broker against the suite, and its own bounds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider_broker::conformance::{next, number, publish, subscribe};
use postrider_broker::{Broker, InProcess, InProcessSettings, PublishError, Queue};

fn with(settings: InProcessSettings) -> Arc<dyn Broker> {
    InProcess::new(settings)
}

mod suite {
    postrider_broker::conformance_suite!(async { super::with(super::InProcessSettings::default()) });
}

#[tokio::test]
async fn a_full_queue_refuses_until_a_frame_is_acknowledged() {
    let broker = with(InProcessSettings {
        max_frames: 2,
        ..InProcessSettings::default()
    });
    publish(&broker, Queue::Deliver(0), 0..2).await;
    let frame = Bytes::from_static(b"more");
    let full = broker.publish(Queue::Deliver(0), frame.clone()).await;
    assert_eq!(full, Err(PublishError::Full));
    assert_eq!(broker.publish(Queue::Deliver(1), frame.clone()).await, Ok(()));

    let mut consumer = subscribe(&broker, Queue::Deliver(0), 1).await;
    let held = next(&mut consumer).await;
    let full = broker.publish(Queue::Deliver(0), frame.clone()).await;
    assert_eq!(full, Err(PublishError::Full), "what is out counts");
    assert!(held.receipt.acknowledge().await);
    assert_eq!(broker.publish(Queue::Deliver(0), frame).await, Ok(()));
}

#[tokio::test]
async fn bytes_bound_a_queue_too() {
    let broker = with(InProcessSettings {
        max_bytes: 100,
        ..InProcessSettings::default()
    });
    let half = Bytes::from(vec![0; 60]);
    assert_eq!(broker.publish(Queue::Retry(0), half.clone()).await, Ok(()));
    assert_eq!(
        broker.publish(Queue::Retry(0), half).await,
        Err(PublishError::Full)
    );
    let huge = broker.publish(Queue::Journal, Bytes::from(vec![0; 101])).await;
    assert_eq!(huge, Err(PublishError::Full), "it would wait in vain");
}

#[tokio::test(start_paused = true)]
async fn the_journal_confirms_on_acknowledgement_only() {
    let broker = with(InProcessSettings {
        publish_timeout: Duration::from_secs(5),
        ..InProcessSettings::default()
    });
    let unread = broker
        .publish(Queue::Journal, Bytes::from_static(b"\0\0\0\x01"))
        .await;
    assert_eq!(unread, Err(PublishError::Timeout(Duration::from_secs(5))));
    let mut consumer = subscribe(&broker, Queue::Journal, 5).await;
    let incoming = next(&mut consumer).await;
    assert_eq!(number(&incoming), 1, "it may have reached the queue all the same");
    assert!(incoming.receipt.acknowledge().await);

    let publisher = Arc::clone(&broker);
    let publisher = tokio::spawn(async move { publisher.publish(Queue::Journal, Bytes::new()).await });
    let incoming = next(&mut consumer).await;
    assert!(!publisher.is_finished());
    assert!(incoming.receipt.acknowledge().await);
    assert_eq!(publisher.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn publishers_of_a_full_journal_wait_for_room() {
    let broker = with(InProcessSettings {
        max_frames: 1,
        ..InProcessSettings::default()
    });
    let publishers: Vec<_> = (0..5_u32)
        .map(|value| {
            let broker = Arc::clone(&broker);
            tokio::spawn(async move {
                broker
                    .publish(Queue::Journal, Bytes::copy_from_slice(&value.to_be_bytes()))
                    .await
            })
        })
        .collect();
    let mut consumer = subscribe(&broker, Queue::Journal, 5).await;
    for _ in 0..5 {
        assert!(next(&mut consumer).await.receipt.acknowledge().await);
    }
    for publisher in publishers {
        assert_eq!(publisher.await.unwrap(), Ok(()));
    }
}

#[tokio::test]
async fn closing_fails_a_waiting_publisher_of_the_journal() {
    let broker = with(InProcessSettings::default());
    let publisher = Arc::clone(&broker);
    let publisher = tokio::spawn(async move { publisher.publish(Queue::Journal, Bytes::new()).await });
    postrider_broker::conformance::depth_becomes(&broker, Queue::Journal, 1).await;
    broker.close().await;
    assert_eq!(publisher.await.unwrap(), Err(PublishError::Lost));
}

#[tokio::test]
async fn an_unknown_shard_is_refused() {
    let broker = with(InProcessSettings::default());
    let refused = broker.publish(Queue::Deliver(4), Bytes::new()).await;
    assert_eq!(refused, Err(PublishError::Refused));
    assert!(broker.subscribe(Queue::Retry(4), 1).await.is_err());
}

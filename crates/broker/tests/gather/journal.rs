//! Records into frames of the journal.

use postrider_broker::JournalPublisher;
use postrider_model::{Next, Outcome, Record};

use super::*;

#[tokio::test]
async fn records_go_to_the_journal_in_order() {
    let broker = Held::new();
    let settings = GatherSettings {
        max_items: 3,
        ..one_at_a_time()
    };
    let publisher = JournalPublisher::new(Arc::clone(&broker) as Arc<dyn Broker>, settings);
    let records: Vec<Record> = (0..5).map(outcome).collect();
    let expected = records.clone();
    let published = tokio::spawn(async move { publisher.publish(records).await });
    let mut received = Vec::new();
    for _ in 0..2 {
        let (queue, frame, confirm) = broker.next().await;
        assert_eq!(queue, Queue::Journal);
        match frame {
            Frame::Journal(records) => received.extend(records),
            Frame::Jobs(_) => panic!("a frame of records"),
        }
        confirm.send(Ok(())).unwrap();
    }
    assert_eq!(received, expected);
    assert_eq!(published.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn the_records_of_a_call_stay_together_where_the_store_must_take_all_or_none() {
    let broker = Held::new();
    let settings = GatherSettings {
        max_items: 3,
        call_items: 5,
        call_bytes: 1024 * 1024,
        ..one_at_a_time()
    };
    let publisher = JournalPublisher::new(Arc::clone(&broker) as Arc<dyn Broker>, settings);
    let calls: Vec<_> = [2, 6, 1]
        .map(|count| publisher.publish((0..count).map(outcome).collect()))
        .into();
    let mut frames = Vec::new();
    for _ in 0..3 {
        let (_, frame, confirm) = broker.next().await;
        let Frame::Journal(records) = frame else {
            panic!("a frame of records")
        };
        frames.push(records.len());
        confirm.send(Ok(())).unwrap();
    }
    assert_eq!(frames, [2, 5, 2], "the sixth goes with the next call");
    for call in calls {
        assert_eq!(call.await, Ok(()));
    }
}

fn outcome(run: u32) -> Record {
    Record::Outcome(Box::new(Outcome {
        delivery: DeliveryId::from_uuid(Uuid::from_u128(1)),
        message: MessageId::from_uuid(Uuid::from_u128(2)),
        endpoint: EndpointId::from_uuid(Uuid::from_u128(3)),
        app: AppId::from_uuid(Uuid::from_u128(4)),
        run,
        attempts: 1,
        trigger: Trigger::Scheduled,
        at: UnixMillis(5),
        attempt: None,
        next: Next::Delivered,
    }))
}

//! The gatherer over a broker whose confirms the test gives.

mod frames;
mod journal;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use postrider_broker::{
    Broker, BrokerError, GatherSettings, Health, JobPublisher, PublishError, Queue, QueueLook, Subscription,
};
use postrider_model::{AppId, DeliveryId, EndpointId, Job, Message, MessageId, Trigger, UnixMillis};
use postrider_wire::Frame;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

type Confirm = oneshot::Sender<Result<(), PublishError>>;

/// Holds frames until the test decides.
struct Held {
    frames: Mutex<VecDeque<(Queue, Bytes, Confirm)>>,
    arrived: Semaphore,
}

impl Held {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            frames: Mutex::new(VecDeque::new()),
            arrived: Semaphore::new(0),
        })
    }

    async fn next(&self) -> (Queue, Frame, Confirm) {
        self.arrived.acquire().await.expect("it stays open").forget();
        let (queue, frame, confirm) = self.frames.lock().pop_front().expect("a frame arrived");
        (
            queue,
            postrider_wire::decode(frame).expect("a whole frame"),
            confirm,
        )
    }

    async fn next_jobs(&self) -> (Vec<Job>, Confirm) {
        match self.next().await {
            (_, Frame::Jobs(jobs), confirm) => (jobs, confirm),
            (_, Frame::Journal(_), _) => panic!("a frame of jobs"),
        }
    }
}

#[async_trait]
impl Broker for Held {
    async fn publish(&self, queue: Queue, frame: Bytes) -> Result<(), PublishError> {
        let (confirm, confirmed) = oneshot::channel();
        self.frames.lock().push_back((queue, frame, confirm));
        self.arrived.add_permits(1);
        confirmed.await.unwrap_or(Err(PublishError::Lost))
    }

    async fn subscribe(&self, _: Queue, _: u16) -> Result<Subscription, BrokerError> {
        unreachable!("the gatherer only publishes")
    }

    async fn look(&self, _: Queue) -> Result<QueueLook, BrokerError> {
        unreachable!("the gatherer only publishes")
    }

    fn health(&self) -> watch::Receiver<Health> {
        watch::channel(Health::Up).1
    }

    fn is_durable(&self) -> bool {
        true
    }

    async fn close(&self) {}
}

fn message(number: u128, bytes: usize) -> Arc<Message> {
    Arc::new(Message {
        id: MessageId::from_uuid(Uuid::from_u128(number)),
        app: AppId::from_uuid(Uuid::from_u128(1)),
        event_type: "a.b".into(),
        event_id: None,
        channels: Vec::new(),
        content_type: "application/json".into(),
        payload: vec![b'x'; bytes].into(),
        accepted_at: UnixMillis(1),
        payload_retention_days: None,
        traceparent: None,
    })
}

fn job(message: &Arc<Message>, endpoint: u128, ordered: bool) -> Job {
    let endpoint = EndpointId::from_uuid(Uuid::from_u128(endpoint));
    Job {
        delivery: DeliveryId::derive(message.id, endpoint),
        endpoint,
        message: Arc::clone(message),
        run: 0,
        attempts: 0,
        trigger: Trigger::Scheduled,
        probe: false,
        has_token: false,
        ordered,
        lease_until: None,
    }
}

fn small(number: u128) -> Vec<Job> {
    vec![job(&message(number, 10), 1, false)]
}

fn with(settings: GatherSettings) -> (Arc<Held>, JobPublisher) {
    let broker = Held::new();
    let publisher = JobPublisher::new(Arc::clone(&broker) as Arc<dyn Broker>, settings, 1);
    (broker, publisher)
}

/// A call that has been queued when this returns.
async fn call(publisher: &JobPublisher, jobs: Vec<Job>) -> JoinHandle<Result<(), PublishError>> {
    let publisher = publisher.clone();
    let handle = tokio::spawn(async move { publisher.publish(Queue::Deliver(0), jobs).await });
    // One thread: the spawned task runs to its first wait before this goes on.
    tokio::task::yield_now().await;
    handle
}

fn one_at_a_time() -> GatherSettings {
    GatherSettings {
        window: 1,
        pace: Duration::ZERO,
        ..GatherSettings::default()
    }
}

#[tokio::test]
async fn an_idle_lane_publishes_at_once_and_a_busy_one_gathers() {
    let (broker, publisher) = with(GatherSettings {
        window: 2,
        pace: Duration::ZERO,
        ..GatherSettings::default()
    });
    let mut calls = Vec::new();
    for number in 0..10 {
        calls.push(call(&publisher, small(number)).await);
    }
    let (first, confirm_first) = broker.next_jobs().await;
    let (second, confirm_second) = broker.next_jobs().await;
    assert_eq!((first.len(), second.len()), (1, 1), "the window is two frames");
    confirm_second.send(Ok(())).unwrap();
    let (rest, confirm_rest) = broker.next_jobs().await;
    assert_eq!(rest.len(), 8);
    assert!(!calls[0].is_finished() && !calls[9].is_finished());
    confirm_rest.send(Ok(())).unwrap();
    confirm_first.send(Ok(())).unwrap();
    for call in calls {
        assert_eq!(call.await.unwrap(), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_keeps_its_pace_once_it_is_busy() {
    let pace = Duration::from_millis(5);
    let (broker, publisher) = with(GatherSettings {
        pace,
        ..GatherSettings::default()
    });
    let mut start = Instant::now();
    let lonely = call(&publisher, small(0)).await;
    let (_, confirm) = broker.next_jobs().await;
    assert_eq!(start.elapsed(), Duration::ZERO, "a lonely call does not wait");
    confirm.send(Ok(())).unwrap();
    assert_eq!(lonely.await.unwrap(), Ok(()));
    for (count, waits) in [(5, Duration::from_millis(1)), (2, pace)] {
        let mut calls = Vec::new();
        for number in 0..count {
            calls.push(call(&publisher, small(number)).await);
        }
        let (jobs, confirm) = broker.next_jobs().await;
        assert_eq!(
            jobs.len(),
            calls.len(),
            "what comes within the pace goes together"
        );
        // A timer fires up to a millisecond late.
        let longest = waits + Duration::from_millis(1);
        assert!(start.elapsed() > Duration::ZERO && start.elapsed() <= longest);
        start = Instant::now();
        confirm.send(Ok(())).unwrap();
        for call in calls {
            assert_eq!(call.await.unwrap(), Ok(()));
        }
    }
}

#[tokio::test]
async fn a_failed_frame_fails_its_callers_and_no_others() {
    let (broker, publisher) = with(one_at_a_time());
    let before = call(&publisher, small(0)).await;
    let (_, confirm) = broker.next_jobs().await;
    let inside = [call(&publisher, small(1)).await, call(&publisher, small(2)).await];
    confirm.send(Ok(())).unwrap();
    let (jobs, confirm) = broker.next_jobs().await;
    assert_eq!(jobs.len(), 2);
    let after = call(&publisher, small(3)).await;
    confirm.send(Err(PublishError::Refused)).unwrap();
    broker.next_jobs().await.1.send(Ok(())).unwrap();
    for call in inside {
        assert_eq!(call.await.unwrap(), Err(PublishError::Refused));
    }
    assert_eq!(before.await.unwrap(), Ok(()));
    assert_eq!(after.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_call_of_which_a_part_is_out_does_not_say_that_nothing_was_sent() {
    let blocked = PublishError::Blocked;
    for (parts, result) in [
        ([Ok(()), Err(blocked)], PublishError::Lost),
        ([Err(blocked), Ok(())], PublishError::Lost),
        ([Err(blocked), Err(PublishError::Refused)], PublishError::Lost),
        ([Err(blocked), Err(PublishError::Down)], blocked),
    ] {
        let (broker, publisher) = with(GatherSettings {
            max_items: 1,
            ..one_at_a_time()
        });
        let jobs = [small(0), small(1)].concat();
        let call = call(&publisher, jobs).await;
        for part in parts {
            broker.next_jobs().await.1.send(part).unwrap();
        }
        assert_eq!(call.await.unwrap(), Err(result), "{parts:?}");
    }
}

#[tokio::test]
async fn a_call_is_under_way_before_it_is_waited_for() {
    let broker = Held::new();
    let publisher = JobPublisher::new(broker.clone(), GatherSettings::default(), 1);
    let message = message(1, 10);
    let first = publisher.publish(Queue::Deliver(0), vec![job(&message, 1, false)]);
    let other = publisher.publish(Queue::Retry(0), vec![job(&message, 2, false)]);
    let mut arrived = [broker.next().await, broker.next().await];
    arrived.sort_by_key(|(queue, _, _)| *queue == Queue::Deliver(0));
    // In the other order than they are waited for.
    let [(_, _, refuse), (_, _, confirm)] = arrived;
    refuse.send(Err(PublishError::Refused)).expect("it waits");
    confirm.send(Ok(())).expect("it waits");
    assert_eq!((first.await, other.await), (Ok(()), Err(PublishError::Refused)));
}

#[tokio::test]
async fn a_call_of_several_frames_learns_which_deliveries_failed() {
    let settings = GatherSettings {
        max_items: 2,
        ..one_at_a_time()
    };
    let (broker, publisher) = with(settings);
    let jobs: Vec<Job> = (1..=5).flat_map(small).collect();
    let expected: Vec<_> = jobs[2..4]
        .iter()
        .map(|job| (job.delivery, PublishError::Full))
        .collect();
    let caller = tokio::spawn(async move { publisher.publish_each(Queue::Deliver(0), jobs).await });
    for result in [Ok(()), Err(PublishError::Full), Ok(())] {
        let (_, confirm) = broker.next_jobs().await;
        confirm.send(result).expect("the publisher waits");
    }
    assert_eq!(caller.await.expect("no panic"), expected);
}

#[tokio::test]
async fn a_dropped_caller_loses_nobody() {
    let (broker, publisher) = with(one_at_a_time());
    let leader = call(&publisher, small(0)).await;
    let (_, confirm) = broker.next_jobs().await;
    let gone = call(&publisher, small(1)).await;
    let stays = call(&publisher, small(2)).await;
    leader.abort();
    gone.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    confirm.send(Ok(())).unwrap();
    let (jobs, confirm) = broker.next_jobs().await;
    assert_eq!(jobs.len(), 2, "the dropped caller's job goes out too");
    confirm.send(Ok(())).unwrap();
    assert_eq!(stays.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_full_lane_refuses_and_recovers() {
    let settings = GatherSettings {
        queue_items: 2,
        ..one_at_a_time()
    };
    let (broker, publisher) = with(settings);
    let calls = [call(&publisher, small(0)).await, call(&publisher, small(1)).await];
    let full = publisher.publish(Queue::Deliver(0), small(2)).await;
    assert_eq!(full, Err(PublishError::Full));
    for _ in 0..2 {
        broker.next_jobs().await.1.send(Ok(())).unwrap();
    }
    for call in calls {
        assert_eq!(call.await.unwrap(), Ok(()));
    }
    let again = call(&publisher, small(3)).await;
    broker.next_jobs().await.1.send(Ok(())).unwrap();
    assert_eq!(again.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn frames_and_failures_are_counted() {
    let broker = Held::new();
    let metrics = postrider_telemetry::Metrics::new();
    let publisher = JobPublisher::with_metrics(
        Arc::clone(&broker) as Arc<dyn Broker>,
        one_at_a_time(),
        1,
        Arc::clone(&metrics),
    );
    for result in [Ok(()), Err(PublishError::Blocked)] {
        let call = call(&publisher, small(0)).await;
        broker.next_jobs().await.1.send(result).unwrap();
        assert_eq!(call.await.unwrap(), result);
    }
    let text = metrics.render();
    for line in [
        "postrider_envelope_deliveries_count 1",
        "postrider_publish_failures_total{reason=\"blocked\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
}

#[tokio::test]
async fn a_queue_without_jobs_is_refused() {
    let (_, publisher) = with(GatherSettings::default());
    for queue in [Queue::Journal, Queue::Stray, Queue::Deliver(1)] {
        assert_eq!(
            publisher.publish(queue, small(0)).await,
            Err(PublishError::Refused)
        );
    }
    assert_eq!(publisher.publish(Queue::Deliver(0), Vec::new()).await, Ok(()));
}

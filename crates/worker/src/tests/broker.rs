//! The in-process queues, whose journal refuses frames when told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use postrider_broker::{
    Broker, BrokerError, Health, InProcess, InProcessSettings, PublishError, Queue, QueueLook, Subscription,
};
use tokio::sync::watch;

pub(super) struct TestBroker {
    inner: Arc<InProcess>,
    /// Frames of the journal that are refused from now on.
    pub(super) refusals: AtomicUsize,
    /// Frames that were published to the journal, refused ones included.
    pub(super) tries: AtomicUsize,
}

impl TestBroker {
    pub(super) fn new() -> Self {
        Self {
            inner: InProcess::new(InProcessSettings {
                shards: 1,
                ..InProcessSettings::default()
            }),
            refusals: AtomicUsize::new(0),
            tries: AtomicUsize::new(0),
        }
    }
}

#[async_trait]
impl Broker for TestBroker {
    async fn publish(&self, queue: Queue, frame: Bytes) -> Result<(), PublishError> {
        if queue == Queue::Journal {
            self.tries.fetch_add(1, Ordering::SeqCst);
            let one_less = |left: usize| left.checked_sub(1);
            let refuses = self
                .refusals
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
            if refuses.is_ok() {
                return Err(PublishError::Blocked);
            }
        }
        self.inner.publish(queue, frame).await
    }

    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, BrokerError> {
        self.inner.subscribe(queue, prefetch).await
    }

    async fn look(&self, queue: Queue) -> Result<QueueLook, BrokerError> {
        self.inner.look(queue).await
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }

    fn is_durable(&self) -> bool {
        self.inner.is_durable()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

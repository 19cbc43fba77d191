//! The broker of the embedded set-up: bounded queues in memory.
//!
//! A crash empties it, which [`Broker::is_durable`] says: whoever publishes `deliver` frames here leaves a leased row in
//! the store. The journal is different: its publishers wait for the consumer's acknowledgement, so a confirm means
//! that the record is committed and nothing is lost with the process.
//!
//! Each queue is bounded in frames and in bytes, unacknowledged frames included. A full `deliver`, `retry` or `stray`
//! queue is [`PublishError::Full`] at once; publishers of the journal wait for room, within the publish timeout.

mod consume;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use self::queue::{Push, SharedQueue};
use crate::{Broker, BrokerError, Health, PublishError, Queue, QueueLook, Subscription};

/// Limits of an [`InProcess`] broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InProcessSettings {
    /// Shards of `deliver` and of `retry`.
    pub shards: u16,
    /// Most frames in a queue, unacknowledged ones included.
    pub max_frames: usize,
    /// Most bytes in a queue, unacknowledged frames included.
    pub max_bytes: usize,
    /// How long a publisher of the journal waits for room and for the acknowledgement.
    pub publish_timeout: Duration,
}

impl Default for InProcessSettings {
    fn default() -> Self {
        Self {
            shards: 4,
            max_frames: 4096,
            max_bytes: 64 * 1024 * 1024,
            publish_timeout: Duration::from_secs(10),
        }
    }
}

/// Queues in memory.
pub struct InProcess {
    settings: InProcessSettings,
    deliver: Vec<SharedQueue>,
    retry: Vec<SharedQueue>,
    journal: SharedQueue,
    stray: SharedQueue,
    health: watch::Sender<Health>,
}

impl InProcess {
    /// Empty queues.
    pub fn new(settings: InProcessSettings) -> Arc<Self> {
        let queue = |exclusive| SharedQueue::new(settings.max_frames, settings.max_bytes, exclusive);
        Arc::new(Self {
            settings,
            deliver: (0..settings.shards).map(|_| queue(false)).collect(),
            retry: (0..settings.shards).map(|_| queue(false)).collect(),
            journal: queue(true),
            stray: queue(false),
            health: watch::channel(Health::Up).0,
        })
    }

    fn queue(&self, queue: Queue) -> Option<&SharedQueue> {
        match queue {
            Queue::Deliver(shard) => self.deliver.get(usize::from(shard)),
            Queue::Retry(shard) => self.retry.get(usize::from(shard)),
            Queue::Journal => Some(&self.journal),
            Queue::Stray => Some(&self.stray),
        }
    }

    fn existing(&self, queue: Queue) -> Result<&SharedQueue, BrokerError> {
        self.queue(queue).ok_or_else(|| BrokerError {
            message: format!("there is no queue {queue:?}"),
            source: None,
        })
    }

    async fn publish_acknowledged(&self, frame: Bytes) -> Result<(), PublishError> {
        let mut changes = self.journal.changes();
        let acknowledged = loop {
            changes.mark_unchanged();
            let (done, acknowledged) = oneshot::channel();
            match self.journal.push(frame.clone(), Some(done)) {
                Push::Queued => break acknowledged,
                Push::Closed => return Err(PublishError::Lost),
                Push::NeverFits => return Err(PublishError::Full),
                Push::Full => changes.changed().await.map_err(|_| PublishError::Lost)?,
            }
        };
        acknowledged.await.map_err(|_| PublishError::Lost)
    }
}

#[async_trait]
impl Broker for InProcess {
    async fn publish(&self, queue: Queue, frame: Bytes) -> Result<(), PublishError> {
        if queue == Queue::Journal {
            let limit = self.settings.publish_timeout;
            return tokio::time::timeout(limit, self.publish_acknowledged(frame))
                .await
                .unwrap_or(Err(PublishError::Timeout(limit)));
        }
        let target = self.queue(queue).ok_or(PublishError::Refused)?;
        match target.push(frame, None) {
            Push::Queued => Ok(()),
            Push::Closed => Err(PublishError::Lost),
            Push::Full | Push::NeverFits => Err(PublishError::Full),
        }
    }

    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, BrokerError> {
        Ok(consume::start(self.existing(queue)?.clone(), prefetch))
    }

    async fn look(&self, queue: Queue) -> Result<QueueLook, BrokerError> {
        Ok(self.existing(queue)?.look())
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn is_durable(&self) -> bool {
        false
    }

    async fn close(&self) {
        let all = self.deliver.iter().chain(&self.retry);
        for queue in all.chain([&self.journal, &self.stray]) {
            queue.close();
        }
        self.health.send_replace(Health::Down);
    }
}

//! The trait between the roles and a broker, and the types that it speaks in.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queue {
    /// First attempts of one shard.
    Deliver(u16),
    /// What the scheduler releases, of one shard; apart, so that a retry storm cannot starve fresh messages.
    Retry(u16),
    /// Facts for the recorder.
    Journal,
    /// Frames that found no queue or came back too often; the ledger takes them back.
    Stray,
}

/// What can be seen of a queue from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLook {
    /// Frames in it, ready and unacknowledged where the broker can tell.
    pub depth: u64,
    /// Consumers, those that stand by included.
    pub consumers: u32,
}

/// Whether the broker takes frames now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Up,
    /// It is connected but blocks publishers (memory or disk alarm).
    Blocked,
    /// There is no connection; one is being made.
    Down,
}

/// Why a frame was not published. It may all the same have reached the queue: consumers expect duplicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No connection.
    #[error("the broker is unreachable")]
    Down,
    /// A memory or disk alarm; the frame was not sent.
    #[error("the broker blocks publishers")]
    Blocked,
    /// No confirm within the limit.
    #[error("the broker did not confirm within {0:?}")]
    Timeout(Duration),
    /// The broker refused the frame.
    #[error("the broker refused the frame")]
    Refused,
    /// The queue's bound in frames or bytes is reached (in-process only).
    #[error("the queue is full")]
    Full,
    /// The connection broke before the confirm, an alarm came before it, or the broker was closed.
    #[error("the broker's connection was lost before the confirm")]
    Lost,
}

impl PublishError {
    /// Whether it tells that nothing was sent at all.
    #[must_use]
    pub const fn leaves_nothing(self) -> bool {
        matches!(self, Self::Down | Self::Blocked | Self::Full)
    }
}

/// A broker could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("broker: {message}")]
pub struct BrokerError {
    /// What was tried.
    pub message: String,
    /// Why it failed.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Durable queues between the roles.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Publishes one frame and waits until it is safe. Bounded in time by the implementation's publish timeout.
    async fn publish(&self, queue: Queue, frame: Bytes) -> Result<(), PublishError>;

    /// Consumes a queue with at most `prefetch` unacknowledged frames. Returns at once; frames follow when the
    /// broker is reachable.
    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, BrokerError>;

    /// A queue from outside: what is in it and who consumes it.
    async fn look(&self, queue: Queue) -> Result<QueueLook, BrokerError>;

    /// Frames in a queue, ready and unacknowledged where the broker can tell.
    async fn depth(&self, queue: Queue) -> Result<u64, BrokerError> {
        Ok(self.look(queue).await?.depth)
    }

    /// The state of the publishing side, now and as it changes.
    fn health(&self) -> watch::Receiver<Health>;

    /// Whether frames of `deliver` and `retry` queues survive this process.
    fn is_durable(&self) -> bool;

    /// Ends all subscriptions and connections. Unacknowledged frames go back.
    async fn close(&self);
}

/// A consumer. Dropping it returns what it holds unacknowledged.
#[derive(Debug)]
pub struct Subscription {
    frames: mpsc::Receiver<Incoming>,
    stop: CancellationToken,
    _dropped: oneshot::Sender<()>,
}

/// How an implementation learns what becomes of a subscription.
#[derive(Debug)]
pub struct SubscriptionEnds {
    /// [`Subscription::stop`] was called.
    pub stopped: CancellationToken,
    /// Resolves (with an error) when it is dropped.
    pub dropped: oneshot::Receiver<()>,
}

impl Subscription {
    /// Made by implementations.
    pub fn new(frames: mpsc::Receiver<Incoming>) -> (Self, SubscriptionEnds) {
        let (guard, dropped) = oneshot::channel();
        let stopped = CancellationToken::new();
        let subscription = Self {
            frames,
            stop: stopped.clone(),
            _dropped: guard,
        };
        (subscription, SubscriptionEnds { stopped, dropped })
    }

    /// Has the broker hand out no more: what comes from now on goes to others. What was handed out still comes, and can be
    /// acknowledged or given back until the subscription is dropped.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// The next frame; `None` once the broker is closed.
    pub async fn next(&mut self) -> Option<Incoming> {
        self.frames.recv().await
    }

    /// A frame that is already here.
    pub fn try_next(&mut self) -> Option<Incoming> {
        self.frames.try_recv().ok()
    }
}

/// A frame handed to a consumer.
#[derive(Debug)]
pub struct Incoming {
    /// The frame.
    pub frame: Bytes,
    /// How often it was handed out before without being acknowledged.
    pub delivery_count: u32,
    /// Ends the broker's duty for it.
    pub receipt: Receipt,
}

/// The right to acknowledge one frame, or to give it back. Dropped unused, the frame stays unacknowledged until the
/// subscription (or its connection) ends; then it comes back.
#[derive(Debug)]
pub struct Receipt(Option<Box<dyn Acknowledge>>);

/// What an implementation does on acknowledgement.
#[async_trait]
pub trait Acknowledge: Send + Sync + std::fmt::Debug {
    /// Tells the broker that the frame is done with. False when the frame's connection is gone: it comes back.
    ///
    /// `more`: another acknowledgement of the same subscription follows at once. This one may be held back, to go with
    /// that.
    async fn acknowledge(self: Box<Self>, more: bool) -> bool;

    /// Tells the broker to hand the frame out again. It comes back in any case; this only has it come at once.
    async fn give_back(self: Box<Self>);

    /// Whether the frame's connection is gone, so that nothing can acknowledge it any more.
    fn is_void(&self) -> bool;
}

impl Receipt {
    /// Made by implementations.
    pub fn new(acknowledge: Box<dyn Acknowledge>) -> Self {
        Self(Some(acknowledge))
    }

    /// Acknowledges. False means that the frame will come back although it was handled.
    pub async fn acknowledge(self) -> bool {
        self.tell(false).await
    }

    /// Acknowledges frames of one subscription, together where the broker can. False means that one or more of them
    /// will come back although they were handled.
    pub async fn acknowledge_all(receipts: impl IntoIterator<Item = Self, IntoIter: Send> + Send) -> bool {
        // A subscription outlives its connections. What belongs to an earlier one is void before the next one hands out
        // anything, so the others are of one: the last of them takes along those that are held back for it.
        let (void, live): (Vec<Self>, Vec<Self>) = receipts.into_iter().partition(Self::is_void);
        let mut receipts = live.into_iter().peekable();
        let mut all = void.is_empty();
        while let Some(receipt) = receipts.next() {
            all &= receipt.tell(receipts.peek().is_some()).await;
        }
        all
    }

    /// Has the frame handed out again, to whoever consumes then, with a higher delivery count.
    pub async fn give_back(mut self) {
        if let Some(acknowledge) = self.0.take() {
            acknowledge.give_back().await;
        }
    }

    /// Whether its connection is gone: the frame comes back, whatever becomes of it here.
    pub fn is_void(&self) -> bool {
        self.0.as_ref().is_none_or(|acknowledge| acknowledge.is_void())
    }

    async fn tell(mut self, more: bool) -> bool {
        match self.0.take() {
            Some(acknowledge) => acknowledge.acknowledge(more).await,
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// Notes whether more was said to follow.
    #[derive(Debug)]
    struct Noted {
        calls: Arc<Mutex<Vec<bool>>>,
        is_void: bool,
    }

    #[async_trait]
    impl Acknowledge for Noted {
        async fn acknowledge(self: Box<Self>, more: bool) -> bool {
            self.calls.lock().push(more);
            true
        }

        async fn give_back(self: Box<Self>) {}

        fn is_void(&self) -> bool {
            self.is_void
        }
    }

    #[tokio::test]
    async fn the_last_frame_that_can_be_acknowledged_takes_the_others_along() {
        let calls = Arc::<Mutex<Vec<bool>>>::default();
        let receipt = |is_void| {
            let calls = calls.clone();
            Receipt::new(Box::new(Noted { calls, is_void }))
        };
        assert!(Receipt::acknowledge_all([false, false, false].map(receipt)).await);
        assert_eq!(std::mem::take(&mut *calls.lock()), [true, true, false]);
        assert!(!Receipt::acknowledge_all([false, true, false, true].map(receipt)).await);
        assert_eq!(std::mem::take(&mut *calls.lock()), [true, false]);
        assert!(!Receipt::acknowledge_all([true].map(receipt)).await);
        assert!(calls.lock().is_empty());
    }
}

//! A consumer: a task that moves frames from the queue to its subscription, at most `prefetch` at a time.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::queue::SharedQueue;
use crate::{Acknowledge, Incoming, Receipt, Subscription, SubscriptionEnds};

/// Starts consuming; a prefetch of 0 counts as 1.
pub(super) fn start(queue: SharedQueue, prefetch: u16) -> Subscription {
    let prefetch = usize::from(prefetch.max(1));
    let (sender, receiver) = mpsc::channel(prefetch);
    let (subscription, ends) = Subscription::new(receiver);
    let consumer = Consumer {
        id: queue.register(),
        queue,
    };
    tokio::spawn(consumer.run(sender, ends, Arc::new(Semaphore::new(prefetch))));
    subscription
}

/// Gives its frames back when dropped.
struct Consumer {
    id: u64,
    queue: SharedQueue,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.queue.unregister(self.id);
    }
}

impl Consumer {
    async fn run(
        self,
        sender: mpsc::Sender<Incoming>,
        ends: SubscriptionEnds,
        unacknowledged: Arc<Semaphore>,
    ) {
        let SubscriptionEnds { stopped, mut dropped } = ends;
        tokio::select! {
            biased;
            _ = &mut dropped => {}
            // It goes on holding what is out.
            () = stopped.cancelled() => {
                let _ = dropped.await;
            }
            () = self.hand_out(&sender, unacknowledged) => {}
        }
    }

    /// Hands frames out until the queue is closed.
    async fn hand_out(&self, sender: &mpsc::Sender<Incoming>, unacknowledged: Arc<Semaphore>) {
        let mut changes = self.queue.changes();
        loop {
            let Ok(place) = Arc::clone(&unacknowledged).acquire_owned().await else {
                return;
            };
            let taken = loop {
                changes.mark_unchanged();
                if self.queue.is_closed() {
                    return;
                }
                if let Some(taken) = self.queue.take(self.id) {
                    break taken;
                }
                if changes.changed().await.is_err() {
                    return;
                }
            };
            let incoming = Incoming {
                frame: taken.frame,
                delivery_count: taken.delivery_count,
                receipt: Receipt::new(Box::new(Held {
                    queue: self.queue.clone(),
                    consumer: self.id,
                    place: taken.place,
                    prefetch: Some(place),
                })),
            };
            // There is room: the channel is as large as the prefetch.
            if sender.send(incoming).await.is_err() {
                return;
            }
        }
    }
}

/// An unacknowledged frame and its place in the prefetch.
struct Held {
    queue: SharedQueue,
    consumer: u64,
    place: u64,
    prefetch: Option<OwnedSemaphorePermit>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "frame {}", self.place)
    }
}

/// A receipt dropped unused keeps its place in the prefetch: the frame is still out.
impl Drop for Held {
    fn drop(&mut self) {
        if let Some(prefetch) = self.prefetch.take() {
            prefetch.forget();
        }
    }
}

#[async_trait]
impl Acknowledge for Held {
    async fn acknowledge(mut self: Box<Self>, _more: bool) -> bool {
        let acknowledged = self.queue.acknowledge(self.consumer, self.place);
        drop(self.prefetch.take());
        acknowledged
    }

    async fn give_back(mut self: Box<Self>) {
        self.queue.give_back(self.consumer, self.place);
        drop(self.prefetch.take());
    }

    /// Each frame is looked at by itself.
    fn is_void(&self) -> bool {
        false
    }
}

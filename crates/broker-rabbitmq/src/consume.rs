//! Consuming: one task and one channel per subscription.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, DeliveryTag, FieldTable};
use lapin::{Channel, Consumer};
use postrider_broker::{Acknowledge, BrokerError, Incoming, Queue, Receipt, Subscription, SubscriptionEnds};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::acks::Acks;
use crate::backoff::Backoff;
use crate::link::{Link, Links, failed};

/// How long a session must last until delays start again from the smallest.
const STABLE: Duration = Duration::from_secs(5);

/// Starts consuming; a prefetch of 0, which AMQP reads as "no limit", counts as 1.
pub(crate) fn start(shared: &Arc<Shared>, links: Links, queue: Queue, prefetch: u16) -> Subscription {
    let prefetch = prefetch.max(1);
    let (sender, receiver) = mpsc::channel(usize::from(prefetch));
    let (subscription, ends) = Subscription::new(receiver);
    let task = Task {
        shared: Arc::clone(shared),
        links,
        queue,
        prefetch,
        sender,
        failed_at: None,
    };
    shared.tasks.spawn(task.run(ends));
    subscription
}

struct Task {
    shared: Arc<Shared>,
    links: Links,
    queue: Queue,
    prefetch: u16,
    sender: mpsc::Sender<Incoming>,
    /// When the last session failed: the queue may be gone, unless it has been declared since.
    failed_at: Option<Instant>,
}

impl Task {
    /// One session after the other, until the subscription is dropped or the broker closed.
    async fn run(mut self, ends: SubscriptionEnds) {
        let SubscriptionEnds { stopped, mut dropped } = ends;
        let settings = &self.shared.settings;
        let mut backoff = Backoff::new(settings.reconnect_min, settings.reconnect_max);
        let closing = self.shared.closing.clone();
        loop {
            let lasted = tokio::select! {
                biased;
                _ = &mut dropped => return,
                () = closing.cancelled() => return,
                lasted = self.next_session(&stopped) => lasted,
            };
            if lasted >= STABLE {
                backoff.reset();
            }
            if stopped.is_cancelled() {
                return;
            }
            tokio::select! {
                biased;
                _ = &mut dropped => return,
                () = closing.cancelled() => return,
                () = sleep(backoff.next(rand::random())) => {}
            }
        }
    }

    /// Returns how long frames came.
    async fn next_session(&mut self, stopped: &CancellationToken) -> Duration {
        let link = match self.links.wait_for(Option::is_some).await {
            Ok(link) => link.clone(),
            Err(_) => None,
        };
        // None: the supervisor is gone, because the broker is being closed.
        let Some(link) = link else {
            return Duration::ZERO;
        };
        let limit = self.shared.settings.connect_timeout;
        let opened = tokio::select! {
            () = link.broken.cancelled() => return Duration::ZERO,
            opened = timeout(limit, self.open(&link)) => opened,
        };
        let (mut session, mut consumer) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => {
                let cause = error.source.as_ref().map(ToString::to_string);
                tracing::warn!(queue = ?self.queue, %error, cause, "cannot consume");
                self.failed_at = Some(Instant::now());
                return Duration::ZERO;
            }
            Err(_) => {
                tracing::warn!(queue = ?self.queue, "RabbitMQ does not answer");
                link.broken.cancel();
                return Duration::ZERO;
            }
        };
        self.failed_at = None;
        let since = Instant::now();
        tokio::select! {
            () = link.broken.cancelled() => {}
            () = self.forward(stopped, &session, &mut consumer) => {
                tracing::warn!(queue = ?self.queue, "RabbitMQ ended a consumer");
                self.failed_at = Some(Instant::now());
            }
        }
        session.end();
        since.elapsed()
    }

    async fn open(&self, link: &Link) -> Result<(Session, Consumer), BrokerError> {
        let topology = &self.shared.topology;
        if let Some(failed_at) = self.failed_at {
            link.declare_again(topology, failed_at).await?;
        }
        let name = topology.checked(self.queue)?;
        let open = async {
            let channel = link.connection.create_channel().await?;
            channel
                .basic_qos(self.prefetch, BasicQosOptions::default())
                .await?;
            let consumer = channel
                .basic_consume(
                    name.as_str().into(),
                    "".into(),
                    BasicConsumeOptions::default(),
                    FieldTable::default(),
                )
                .await?;
            Ok((channel, consumer))
        };
        let (channel, consumer) = open
            .await
            .map_err(|error| failed(&format!("cannot consume {name}"), Some(error)))?;
        let session = Session {
            channel: Some(channel),
            acks: Arc::default(),
        };
        Ok((session, consumer))
    }

    /// Hands frames on until the server ends the consumer (a deleted queue, a moved leader, a closed channel). Once `stopped`
    /// it takes no more, hands on what it had taken, and holds what is out.
    async fn forward(&self, stopped: &CancellationToken, session: &Session, consumer: &mut Consumer) {
        let mut was_asked = false;
        loop {
            let delivery = tokio::select! {
                biased;
                () = stopped.cancelled(), if !was_asked => {
                    was_asked = true;
                    self.cancel(session, consumer).await;
                    continue;
                }
                delivery = consumer.next() => delivery,
            };
            let Some(Ok(delivery)) = delivery else { break };
            if !self.hand_on(session, delivery).await {
                was_asked = true;
                break;
            }
        }
        if was_asked {
            // Until the subscription is dropped.
            std::future::pending::<()>().await;
        }
    }

    async fn cancel(&self, session: &Session, consumer: &Consumer) {
        let Some(channel) = &session.channel else {
            return;
        };
        let cancelled = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        if let Err(error) = cancelled.await {
            tracing::warn!(queue = ?self.queue, %error, "a consumer was not cancelled; it takes frames until the end");
        }
    }

    /// False when the subscription was dropped.
    async fn hand_on(&self, session: &Session, delivery: Delivery) -> bool {
        session
            .acks
            .handed_out(delivery.delivery_tag, delivery.acker.clone());
        let incoming = Incoming {
            delivery_count: delivery_count(&delivery),
            receipt: Receipt::new(Box::new(Held {
                tag: delivery.delivery_tag,
                acks: Arc::clone(&session.acks),
                limit: self.shared.settings.publish_timeout,
            })),
            frame: delivery.data.into(),
        };
        // Prefetch bounds what is out, so this waits only behind unread frames of an earlier session.
        self.sender.send(incoming).await.is_ok()
    }
}

/// A channel with a consumer. Its end, however it comes, gives back what it holds and voids its receipts.
struct Session {
    channel: Option<Channel>,
    acks: Arc<Acks>,
}

impl Session {
    fn end(&mut self) {
        self.acks.end();
        // Dropping the last handle closes the channel.
        self.channel = None;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

/// Quorum queues count returns in a header.
fn delivery_count(delivery: &Delivery) -> u32 {
    let headers = delivery.properties.headers().as_ref();
    let count = headers.and_then(|headers| headers.inner().get("x-delivery-count"));
    let count = match count {
        Some(AMQPValue::LongLongInt(count)) => *count,
        Some(AMQPValue::LongInt(count)) => i64::from(*count),
        Some(AMQPValue::LongUInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortUInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortShortInt(count)) => i64::from(*count),
        Some(AMQPValue::ShortShortUInt(count)) => i64::from(*count),
        _ => 0,
    };
    u32::try_from(count).unwrap_or(if count < 0 { 0 } else { u32::MAX })
}

#[derive(Debug)]
struct Held {
    tag: DeliveryTag,
    acks: Arc<Acks>,
    limit: Duration,
}

#[async_trait]
impl Acknowledge for Held {
    async fn acknowledge(self: Box<Self>, more: bool) -> bool {
        if !self.acks.done(self.tag) {
            return false;
        }
        if more {
            return true;
        }
        // In a task of its own, since others' acknowledgements go with it: whoever stops waiting stops nothing.
        let acks = self.acks;
        let sending = tokio::spawn(async move { acks.send().await });
        matches!(timeout(self.limit, sending).await, Ok(Ok(true)))
    }

    async fn give_back(self: Box<Self>) {
        // In time or not, it comes back.
        let _ = timeout(self.limit, self.acks.give_back(self.tag)).await;
    }

    fn is_void(&self) -> bool {
        self.acks.is_over()
    }
}

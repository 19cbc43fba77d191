//! The broker between processes: RabbitMQ quorum queues with publisher confirms.
//!
//! Cast:
//!
//! - Two *supervisors* (`supervisor`), one for a connection that publishes and one for a connection that consumes: an
//!   alarm that blocks the first must not hold back acknowledgements on the second. Each connects, declares the
//!   `topology`, hands its *link* out and watches it; whatever breaks, it tears the link down and connects again, with
//!   full-jitter delays, for ever. The client library's own recovery stays off: it gives up, and does not cover a channel
//!   or consumer that the server ends.
//! - The *publisher* (`publish`) sends persistent frames inside a window of unconfirmed ones. A refusal or a time-out ends
//!   the link, so that the whole window fails: the library's pairing of returns with confirms cannot be trusted.
//! - One *consumer* task per subscription (`consume`), with a channel of its own, which it makes anew when the link, the channel or
//!   the server's consumer ends.
//!
//! A frame that finds no queue (deleted under us) goes through the alternate exchange to `stray`; so does one that
//! came back too often, through the dead-letter exchange. Not load-bearing: the periodic re-declaration, which only
//! shortens the time for which frames go astray.

mod acks;
mod backoff;
mod consume;
mod link;
mod publish;
mod settings;
mod supervisor;
mod topology;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_broker::{Broker, BrokerError, Health, PublishError, Queue, QueueLook, Subscription};
use postrider_telemetry::Metrics;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::link::{Links, Purpose, failed};
use self::publish::Publisher;
pub use self::settings::Settings;
use self::supervisor::Supervisor;
use self::topology::Topology;

/// How long [`Broker::close`] waits for connections to say goodbye.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// What all tasks of one broker share.
struct Shared {
    settings: Settings,
    metrics: Option<Arc<Metrics>>,
    uri: lapin::uri::AMQPUri,
    topology: Topology,
    closing: CancellationToken,
    tasks: TaskTracker,
}

/// RabbitMQ, connected and kept connected.
pub struct Rabbit {
    shared: Arc<Shared>,
    publisher: Publisher,
    consuming: Links,
}

impl Rabbit {
    /// Starts to connect, in the background, and returns at once; [`Broker::health`] tells when it is up. Must be called
    /// inside a Tokio runtime. `metrics` counts connections that had to be made again.
    ///
    /// # Errors
    /// The settings make no sense: the URL cannot be read, or the prefix or the number of shards is out of bounds.
    pub fn connect(settings: Settings, metrics: Option<Arc<Metrics>>) -> Result<Arc<Self>, BrokerError> {
        let uri = settings.uri()?;
        let topology = Topology::new(&settings)?;
        let shared = Arc::new(Shared {
            settings,
            metrics,
            uri,
            topology,
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let health = watch::channel(Health::Down).0;
        let publishing = Supervisor::start(&shared, Purpose::Publish, Some(health.clone()));
        let consuming = Supervisor::start(&shared, Purpose::Consume, None);
        Ok(Arc::new(Self {
            publisher: Publisher::new(Arc::clone(&shared), publishing, health),
            shared,
            consuming,
        }))
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

#[async_trait]
impl Broker for Rabbit {
    async fn publish(&self, queue: Queue, frame: Bytes) -> Result<(), PublishError> {
        self.publisher.publish(queue, frame).await
    }

    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, BrokerError> {
        self.shared.topology.checked(queue)?;
        Ok(consume::start(
            &self.shared,
            self.consuming.clone(),
            queue,
            prefetch,
        ))
    }

    /// Ready frames only: over AMQP RabbitMQ does not tell the unacknowledged ones.
    async fn look(&self, queue: Queue) -> Result<QueueLook, BrokerError> {
        let topology = &self.shared.topology;
        let name = topology.checked(queue)?;
        let link = self.consuming.borrow().clone();
        let link = link.ok_or_else(|| failed("there is no connection", None))?;
        let limit = self.shared.settings.connect_timeout;
        match tokio::time::timeout(limit, topology.look(&link.connection, &name)).await {
            Ok(look) => look,
            Err(_) => Err(failed(
                &format!("a look at {name} took longer than {limit:?}"),
                None,
            )),
        }
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.publisher.health()
    }

    fn is_durable(&self) -> bool {
        true
    }

    async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(CLOSE_LIMIT, self.shared.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("connections to RabbitMQ did not close in time and are dropped");
        }
    }
}

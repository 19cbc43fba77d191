//! Publishing with confirms.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Confirmation};
use postrider_broker::{Health, PublishError, Queue};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::Shared;
use crate::link::{Link, Links, Outlet};

/// AMQP's delivery mode of messages that survive a restart.
const PERSISTENT: u8 = 2;

pub(crate) struct Publisher {
    shared: Arc<Shared>,
    links: Links,
    health: watch::Sender<Health>,
}

/// One frame on its way.
struct Shipment {
    exchange: String,
    key: String,
    frame: Bytes,
    limit: Duration,
    /// Whether it was handed to the connection, so that nobody knows any more where it is.
    is_out: AtomicBool,
}

impl Publisher {
    pub(crate) fn new(shared: Arc<Shared>, links: Links, health: watch::Sender<Health>) -> Self {
        Self {
            shared,
            links,
            health,
        }
    }

    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    pub(crate) async fn publish(&self, queue: Queue, frame: Bytes) -> Result<(), PublishError> {
        let settings = &self.shared.settings;
        if frame.len() > settings.max_frame_bytes {
            tracing::error!(
                frame.size_bytes = frame.len(),
                frame.size_max_bytes = settings.max_frame_bytes,
                "a frame is too large"
            );
            return Err(PublishError::Refused);
        }
        let key = self
            .shared
            .topology
            .routing_key(queue)
            .ok_or(PublishError::Refused)?;
        let health = self.health();
        let now = *health.borrow();
        match now {
            Health::Up => {}
            Health::Blocked => return Err(PublishError::Blocked),
            Health::Down => return Err(PublishError::Down),
        }
        let link = self.links.borrow().clone().ok_or(PublishError::Down)?;
        let shipment = Shipment {
            exchange: self.shared.topology.exchange.clone(),
            key,
            frame,
            limit: settings.publish_timeout,
            is_out: AtomicBool::new(false),
        };
        // A task of its own: a caller that goes away must not leave a confirm that nobody collects.
        let shipped = tokio::spawn(shipment.ship(link, health));
        shipped.await.unwrap_or(Err(PublishError::Lost))
    }
}

impl Shipment {
    /// Waits for the confirm, the link's end, an alarm, or the time limit, whichever comes first.
    async fn ship(self, link: Arc<Link>, mut health: watch::Receiver<Health>) -> Result<(), PublishError> {
        let Some(outlet) = &link.outlet else {
            return Err(PublishError::Down);
        };
        let blocked = async {
            let seen = health.wait_for(|health| *health == Health::Blocked).await.is_ok();
            if !seen {
                std::future::pending::<()>().await;
            }
        };
        let result = tokio::select! {
            biased;
            () = link.broken.cancelled() => return Err(PublishError::Lost),
            () = blocked => return Err(if self.is_out.load(Ordering::Acquire) {
                // RabbitMQ reads it when the alarm is over.
                PublishError::Lost
            } else {
                PublishError::Blocked
            }),
            confirmed = timeout(self.limit, self.confirmed(outlet)) => {
                confirmed.unwrap_or(Err(PublishError::Timeout(self.limit)))
            }
        };
        if result.is_err() {
            // The whole window fails with it.
            link.broken.cancel();
        }
        result
    }

    async fn confirmed(&self, outlet: &Outlet) -> Result<(), PublishError> {
        let _place = outlet.window.acquire().await.map_err(|_| PublishError::Lost)?;
        self.is_out.store(true, Ordering::Release);
        let published = outlet.channel.basic_publish(
            self.exchange.as_str().into(),
            self.key.as_str().into(),
            BasicPublishOptions::default(),
            &self.frame,
            BasicProperties::default().with_delivery_mode(PERSISTENT),
        );
        let confirm = published.await.map_err(|error| lost(&error))?;
        match confirm.await.map_err(|error| lost(&error))? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) | Confirmation::Nack(_) | Confirmation::NotRequested => {
                tracing::error!(queue = self.key, "RabbitMQ refused a frame");
                Err(PublishError::Refused)
            }
        }
    }
}

fn lost(error: &lapin::Error) -> PublishError {
    tracing::warn!(%error, "a frame was not confirmed");
    PublishError::Lost
}

//! Keeps one connection: makes it, hands it out, watches it, replaces it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::Event;
use postrider_broker::{BrokerError, Health};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::Shared;
use crate::backoff::Backoff;
use crate::link::{Link, Links, Purpose, failed};

/// How often the link is looked at, beside the events it sends: an event may be missed, a state cannot.
const LOOK: Duration = Duration::from_millis(500);
/// How often the topology is declared again while all is well.
const REDECLARE: Duration = Duration::from_secs(30);
/// How long a link must last until delays start again from the smallest.
const STABLE: Duration = Duration::from_secs(5);
/// How long a connection gets to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    purpose: Purpose,
    links: watch::Sender<Option<Arc<Link>>>,
    health: Option<watch::Sender<Health>>,
}

/// Why a link ended.
enum End {
    Closing,
    Broken,
}

impl Supervisor {
    /// Starts the task; its link is in the result while there is one.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        purpose: Purpose,
        health: Option<watch::Sender<Health>>,
    ) -> Links {
        let (links, current) = watch::channel(None);
        let supervisor = Self {
            shared: Arc::clone(shared),
            purpose,
            links,
            health,
        };
        shared.tasks.spawn(supervisor.run());
        current
    }

    async fn run(self) {
        let settings = &self.shared.settings;
        let closing = self.shared.closing.clone();
        let mut backoff = Backoff::new(settings.reconnect_min, settings.reconnect_max);
        loop {
            let established = tokio::select! {
                biased;
                () = closing.cancelled() => return,
                established = self.establish() => established,
            };
            match established {
                Ok(link) => {
                    let since = Instant::now();
                    if let End::Closing = self.serve(link).await {
                        return;
                    }
                    if since.elapsed() >= STABLE {
                        backoff.reset();
                    }
                }
                Err(error) => {
                    let cause = error.source.as_ref().map(ToString::to_string);
                    tracing::warn!(purpose = self.purpose.as_str(), %error, cause, "RabbitMQ is out of reach");
                }
            }
            tokio::select! {
                () = closing.cancelled() => return,
                () = sleep(backoff.next(rand::random())) => {}
            }
        }
    }

    async fn establish(&self) -> Result<Arc<Link>, BrokerError> {
        let limit = self.shared.settings.connect_timeout;
        match timeout(limit, Link::establish(&self.shared, self.purpose)).await {
            Ok(link) => link.map(Arc::new),
            Err(_) => Err(failed(&format!("no connection within {limit:?}"), None)),
        }
    }

    /// Hands the link out until it ends.
    async fn serve(&self, link: Arc<Link>) -> End {
        tracing::info!(purpose = self.purpose.as_str(), "connected to RabbitMQ");
        self.links.send_replace(Some(Arc::clone(&link)));
        self.set_health(Health::Up);
        let end = self.watch(&link).await;
        self.links.send_replace(None);
        self.set_health(Health::Down);
        link.broken.cancel();
        match end {
            End::Closing => tracing::info!(purpose = self.purpose.as_str(), "leaving RabbitMQ"),
            End::Broken => {
                tracing::warn!(purpose = self.purpose.as_str(), "lost the link to RabbitMQ");
                if let Some(metrics) = &self.shared.metrics {
                    metrics.reconnected(self.purpose.service());
                }
            }
        }
        // It may be gone, blocked or frozen; dropping the last handle ends it then.
        let _ = timeout(GOODBYE, link.connection.close(200, "OK".into())).await;
        end
    }

    async fn watch(&self, link: &Link) -> End {
        let mut events = std::pin::pin!(link.connection.events_listener());
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut redeclare = interval(REDECLARE);
        redeclare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        redeclare.reset();
        loop {
            tokio::select! {
                () = self.shared.closing.cancelled() => return End::Closing,
                () = link.broken.cancelled() => return End::Broken,
                event = events.next() => match event {
                    None => return End::Broken,
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(purpose = self.purpose.as_str(), reason, "RabbitMQ blocks this connection");
                    }
                    Some(Event::Error(error)) => {
                        tracing::warn!(purpose = self.purpose.as_str(), %error, "RabbitMQ reports an error");
                    }
                    Some(_) => {}
                },
                _ = look.tick() => {}
                _ = redeclare.tick(), if self.purpose == Purpose::Consume => self.redeclare(link).await,
            }
            if !link.stands() {
                return End::Broken;
            }
            self.follow_alarm(link).await;
        }
    }

    /// Repairs what somebody deleted. What is there with other arguments is logged and left. On the consuming connection,
    /// which no alarm blocks.
    async fn redeclare(&self, link: &Link) {
        let declared = self.shared.topology.declare(&link.connection);
        match timeout(self.shared.settings.connect_timeout, declared).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let cause = error.source.as_ref().map(ToString::to_string);
                tracing::warn!(%error, cause, "the topology is not as it should be");
            }
            Err(_) => link.broken.cancel(),
        }
    }

    /// Health follows the server's alarm. Before it is up again, the confirms of frames that were given up are collected:
    /// the library keeps them until asked.
    async fn follow_alarm(&self, link: &Link) {
        let (Some(health), Some(outlet)) = (&self.health, &link.outlet) else {
            return;
        };
        let blocked = link.connection.status().blocked();
        let was_blocked = *health.borrow() == Health::Blocked;
        if blocked && !was_blocked {
            self.set_health(Health::Blocked);
        } else if !blocked && was_blocked {
            let limit = self.shared.settings.publish_timeout;
            match timeout(limit, outlet.channel.wait_for_confirms()).await {
                Ok(Ok(_)) => self.set_health(Health::Up),
                // Blocked again meanwhile: the next look comes back here.
                Err(_) if link.connection.status().blocked() => {}
                Ok(Err(_)) | Err(_) => link.broken.cancel(),
            }
        }
    }

    fn set_health(&self, now: Health) {
        if let Some(health) = &self.health {
            health.send_if_modified(|health| std::mem::replace(health, now) != now);
        }
    }
}

//! Exchanges and queues: their names, their arguments, and how they are declared.
//!
//! Names carry the layout's version, because the arguments of a queue that exists cannot change. Everything is durable and
//! every queue is a quorum queue without a length limit. An explicit delivery limit keeps returned frames in order and away from
//! the default of 20 returns; an unlimited one would drop at the first return on RabbitMQ 3.10.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};
use postrider_broker::{BrokerError, Queue, QueueLook};

use crate::link::failed;
use crate::settings::Settings;

const MAX_SHARDS: u16 = 256;
const MAX_PREFIX: usize = 100;

pub(crate) struct Topology {
    /// `<prefix>.v1`: routes by what follows it in a queue's name.
    pub(crate) exchange: String,
    /// `<prefix>.v1.stray`: takes what finds no queue or came back too often.
    stray: String,
    shards: u16,
    delivery_limit: u32,
}

impl Topology {
    pub(crate) fn new(settings: &Settings) -> Result<Self, BrokerError> {
        if settings.prefix.is_empty() || settings.prefix.len() > MAX_PREFIX {
            return Err(failed("the prefix has 1 to 100 bytes", None));
        }
        if settings.shards == 0 || settings.shards > MAX_SHARDS {
            return Err(failed("there are 1 to 256 shards", None));
        }
        let exchange = format!("{}.v1", settings.prefix);
        Ok(Self {
            stray: format!("{exchange}.stray"),
            exchange,
            shards: settings.shards,
            delivery_limit: settings.delivery_limit,
        })
    }

    /// What a frame for this queue is routed by; none if there is no such shard.
    pub(crate) fn routing_key(&self, queue: Queue) -> Option<String> {
        match queue {
            Queue::Deliver(shard) | Queue::Retry(shard) if shard >= self.shards => None,
            Queue::Deliver(shard) => Some(format!("deliver.{shard}")),
            Queue::Retry(shard) => Some(format!("retry.{shard}")),
            Queue::Journal => Some("journal".into()),
            Queue::Stray => Some("stray".into()),
        }
    }

    /// The name of a queue.
    pub(crate) fn checked(&self, queue: Queue) -> Result<String, BrokerError> {
        let key = self
            .routing_key(queue)
            .ok_or_else(|| failed(&format!("there is no queue {queue:?}"), None))?;
        Ok(format!("{}.{key}", self.exchange))
    }

    /// Declares everything, on a channel that is closed afterwards. Harmless where it exists already.
    pub(crate) async fn declare(&self, connection: &Connection) -> Result<(), BrokerError> {
        let declare = async {
            let channel = connection.create_channel().await?;
            self.declare_stray(&channel).await?;
            self.declare_exchange(&channel).await?;
            for shard in 0..self.shards {
                self.declare_queue(&channel, Queue::Deliver(shard)).await?;
                self.declare_queue(&channel, Queue::Retry(shard)).await?;
            }
            self.declare_queue(&channel, Queue::Journal).await?;
            channel.close(200, "OK".into()).await
        };
        declare
            .await
            .map_err(|error| failed("cannot declare the queues", Some(error)))
    }

    /// Ready frames and consumers of a queue.
    pub(crate) async fn look(&self, connection: &Connection, name: &str) -> Result<QueueLook, BrokerError> {
        let look = async {
            let channel = connection.create_channel().await?;
            let queue = channel
                .queue_declare(
                    name.into(),
                    QueueDeclareOptions::durable().passive(),
                    FieldTable::default(),
                )
                .await?;
            channel.close(200, "OK".into()).await?;
            Ok(QueueLook {
                depth: u64::from(queue.message_count()),
                consumers: queue.consumer_count(),
            })
        };
        look.await
            .map_err(|error| failed(&format!("cannot look at {name}"), Some(error)))
    }

    async fn declare_stray(&self, channel: &Channel) -> lapin::Result<()> {
        let stray = self.stray.as_str();
        channel
            .exchange_declare(
                stray.into(),
                ExchangeKind::Fanout,
                durable(),
                FieldTable::default(),
            )
            .await?;
        // No dead-letter exchange: it would lead back here.
        channel
            .queue_declare(stray.into(), QueueDeclareOptions::durable(), self.quorum())
            .await?;
        bind(channel, stray, stray, "").await
    }

    async fn declare_exchange(&self, channel: &Channel) -> lapin::Result<()> {
        let mut arguments = FieldTable::default();
        arguments.insert("alternate-exchange".into(), text(&self.stray));
        channel
            .exchange_declare(
                self.exchange.as_str().into(),
                ExchangeKind::Direct,
                durable(),
                arguments,
            )
            .await?;
        bind(channel, &self.stray, &self.exchange, "stray").await
    }

    async fn declare_queue(&self, channel: &Channel, queue: Queue) -> lapin::Result<()> {
        let Some(key) = self.routing_key(queue) else {
            return Ok(());
        };
        let name = format!("{}.{key}", self.exchange);
        let mut arguments = self.quorum();
        arguments.insert("x-dead-letter-exchange".into(), text(&self.stray));
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        // At-least-once dead-lettering falls back to at-most-once without it.
        arguments.insert("x-overflow".into(), text("reject-publish"));
        if queue == Queue::Journal {
            arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        }
        channel
            .queue_declare(name.as_str().into(), QueueDeclareOptions::durable(), arguments)
            .await?;
        bind(channel, &name, &self.exchange, &key).await
    }

    fn quorum(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("quorum"));
        arguments.insert(
            "x-delivery-limit".into(),
            AMQPValue::LongLongInt(self.delivery_limit.into()),
        );
        arguments
    }
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> lapin::Result<()> {
    channel
        .queue_bind(
            queue.into(),
            exchange.into(),
            key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
}

fn durable() -> ExchangeDeclareOptions {
    ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

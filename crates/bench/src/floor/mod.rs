//! The floor: the least that a webhook service on RabbitMQ can do, as two processes.
//!
//! The *gateway* takes a POST, publishes it persistent to a durable quorum queue, and answers 202 after the confirm. The
//! *worker* consumes, POSTs with the same client library as Postrider, and acks. There is no log, no signature, no
//! limit, no retry. With a batch of 1 it is the bare loop; with 32 it pays the broker once for 32 messages, so that what
//! envelopes gain is not mistaken for something else.

pub(crate) mod frame;
pub(crate) mod gateway;
pub(crate) mod worker;

use anyhow::{Context, Result};
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties};

/// Connects and declares the queue.
async fn open(broker: &str, queue: &str) -> Result<(Connection, Channel)> {
    let connection = Connection::connect(broker, ConnectionProperties::default())
        .await
        .context("cannot connect to RabbitMQ")?;
    let channel = connection.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel
        .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)
        .await
        .with_context(|| format!("cannot declare {queue}"))?;
    Ok((connection, channel))
}

//! RabbitMQ, Redis and Postgres for one run of the bench, with nothing switched off: Postgres and RabbitMQ sync to disk.

mod postgres;

use std::path::Path;

use anyhow::{Context, Result};
use lapin::options::QueueDeleteOptions;
use lapin::{Connection, ConnectionProperties};
use postrider_testkit::services::{RabbitServer, RedisServer};

use crate::process::Names;

pub(crate) use postgres::{Postgres, connect};

/// What docs/operations.md asks for at this rate; everything else is as installed.
const RABBITMQ: &str = "raft.wal_max_size_bytes = 67108864";

pub(crate) struct Services {
    pub(crate) rabbit: RabbitServer,
    pub(crate) redis: RedisServer,
    pub(crate) postgres: Postgres,
}

impl Services {
    pub(crate) async fn start(names: &Names, dir: &Path) -> Result<Self> {
        let (rabbit, redis, postgres) = tokio::try_join!(
            RabbitServer::start_with(RABBITMQ),
            RedisServer::start(),
            Postgres::start(names, dir)
        )?;
        Ok(Self {
            rabbit,
            redis,
            postgres,
        })
    }
}

impl Services {
    /// Shuts them down in good order.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.postgres.stop().await?;
        self.redis.stop().await?;
        self.rabbit.stop().await
    }
}

/// Deletes queues, so that what was measured before costs nothing later.
pub(crate) async fn delete_queues(broker: &str, queues: &[String]) -> Result<()> {
    let connection = Connection::connect(broker, ConnectionProperties::default())
        .await
        .context("cannot connect to RabbitMQ")?;
    let channel = connection.create_channel().await?;
    for queue in queues {
        channel
            .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
            .await?;
    }
    connection
        .close(200, "done".into())
        .await
        .context("cannot close the connection")
}

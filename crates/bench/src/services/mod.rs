//! RabbitMQ, Redis and Postgres for one run of the bench, with nothing switched off: Postgres and RabbitMQ sync to disk.

mod postgres;

use std::path::Path;

use anyhow::Result;
use postrider_testkit::services::{RabbitServer, RedisServer};

use crate::process::Names;

pub(crate) use postgres::{Postgres, connect};

pub(crate) struct Services {
    pub(crate) rabbit: RabbitServer,
    pub(crate) redis: RedisServer,
    pub(crate) postgres: Postgres,
}

impl Services {
    pub(crate) async fn start(names: &Names, dir: &Path) -> Result<Self> {
        let (rabbit, redis, postgres) = tokio::try_join!(
            RabbitServer::start(),
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

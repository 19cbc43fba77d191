//! The settings themselves. Each field's documentation is also its text in the reference.

mod delivery;
mod ledger;
mod services;
mod serving;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use postrider_secrets::RedactedUrl;

use crate::setting::{Any, settings};

pub use delivery::{Delivery, Egress};
pub use ledger::{Recorder, Retention, Scheduler};
pub use services::{Auth, Broker, Redis, Secrets, Store};
pub use serving::{Ingest, Log, Metrics, Server, Traces};

settings! {
    /// Every setting of a process.
    Config in "" {
        /// Address and port of the API, its documentation (`/docs`) and the health checks. `--listen` on the command line.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)), Any;
        /// Directory of the embedded store and of the secrets key made at the first start; made when missing.
        /// `--data-dir` on the command line.
        data_dir: PathBuf = PathBuf::from("./postrider-data"), Any;
    }
    with {
        /// The listeners' limits and TLS.
        server: Server,
        /// Where metrics are served.
        metrics: Metrics,
        /// RabbitMQ.
        broker: Broker,
        /// Redis.
        redis: Redis,
        /// Postgres or SQLite.
        store: Store,
        /// The operator's key.
        auth: Auth,
        /// Encryption at rest.
        secrets: Secrets,
        /// Where deliveries may go, and connections to there.
        egress: Egress,
        /// What a gateway accepts.
        ingest: Ingest,
        /// What a worker does with a delivery.
        delivery: Delivery,
        /// How waiting deliveries are handed out.
        scheduler: Scheduler,
        /// How outcomes are written.
        recorder: Recorder,
        /// How long what was recorded is kept.
        retention: Retention,
        /// Log lines.
        log: Log,
        /// Spans for a collector.
        traces: Traces,
    }
}

/// Where the data is kept, derived from `store.url` and `data_dir`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreTarget {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A Postgres server.
    Postgres(RedactedUrl),
}

impl Config {
    /// The store to open. Without `store.url` that is `postrider.db` in the data directory. A scheme that no store
    /// has counts as SQLite here; [`Config::validate`] refuses it.
    pub fn store_target(&self) -> StoreTarget {
        match &self.store.url {
            Some(url) if services::is_postgres(url) => StoreTarget::Postgres(url.clone()),
            Some(url) => {
                let path = url.expose().split_once(':').map_or("", |(_, rest)| rest);
                StoreTarget::Sqlite(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))
            }
            None => StoreTarget::Sqlite(self.data_dir.join("postrider.db")),
        }
    }

    /// Whether the roles talk over RabbitMQ, so that there may be several processes.
    pub fn is_scaled_out(&self) -> bool {
        self.broker.url.is_some()
    }
}

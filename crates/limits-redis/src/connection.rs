//! The connection for commands: one multiplexed connection, or one a node of a cluster; reconnected for ever.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::cluster::{ClusterClientBuilder, ClusterConfig};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    Cmd, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline, RedisError, RedisResult, ServerErrorKind,
    Value,
};
use tokio::time::Instant;

use crate::ConnectError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// Least time between two connections made because the last one leads to a replica.
const ANOTHER_AFTER: Duration = Duration::from_secs(1);
/// Redirections that a command may follow while slots move.
const CLUSTER_RETRIES: u32 = 3;
/// When a peer that acknowledges nothing is given up.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// Where the servers are.
pub(crate) struct Servers {
    pub(crate) nodes: Vec<ConnectionInfo>,
    pub(crate) clustered: bool,
}

impl Servers {
    /// Reads `redis://`, `rediss://`, `redis+cluster://` and `rediss+cluster://` URLs, separated by commas.
    pub(crate) fn parse(urls: &str) -> Result<Self, ConnectError> {
        let mut nodes = Vec::new();
        let mut clustered = false;
        for url in urls.split(',').map(str::trim).filter(|url| !url.is_empty()) {
            let plain = url.replacen("+cluster://", "://", 1);
            clustered |= plain != url;
            let node = plain.into_connection_info().map_err(ConnectError::Url)?;
            nodes.push(node.set_tcp_settings(tcp_settings()));
        }
        if nodes.is_empty() {
            return Err(ConnectError::NoUrl);
        }
        clustered |= nodes.len() > 1;
        Ok(Self { nodes, clustered })
    }
}

fn tcp_settings() -> TcpSettings {
    let settings = TcpSettings::default().set_nodelay(true);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(UNACKNOWLEDGED);
    settings
}

/// A cheap handle; clones share the connection.
#[derive(Clone)]
pub(crate) enum Connection {
    Single(Arc<Primary>),
    Cluster(ClusterConnection),
}

impl Connection {
    /// Does not wait for the servers.
    pub(crate) fn open(servers: &Servers, timeout: Duration) -> Result<Self, ConnectError> {
        if servers.clustered {
            let client = ClusterClientBuilder::new(servers.nodes.clone())
                .connection_timeout(CONNECT_TIMEOUT)
                .response_timeout(timeout)
                .retries(CLUSTER_RETRIES)
                .tcp_settings(tcp_settings())
                .build()
                .map_err(ConnectError::Settings)?;
            let connection = client.get_pending_async_connection_with_config(ClusterConfig::new());
            return Ok(Self::Cluster(connection));
        }
        let client = redis::Client::open(servers.nodes[0].clone()).map_err(ConnectError::Settings)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(timeout))
            .set_number_of_retries(usize::MAX)
            .set_min_delay(RECONNECT_MIN)
            .set_max_delay(RECONNECT_MAX);
        let primary = Primary::new(client, config).map_err(ConnectError::Settings)?;
        Ok(Self::Single(Arc::new(primary)))
    }

    pub(crate) fn clustered(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    pub(crate) async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Single(primary) => primary.seen(command.query_async(&mut primary.connection()).await),
            Self::Cluster(connection) => command.query_async(&mut connection.clone()).await,
        }
    }

    /// All at once; the answers are in order. The first error is the answer to all, though others may have been done.
    pub(crate) async fn send_all(&self, commands: Vec<Cmd>) -> RedisResult<Vec<Value>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Self::Single(primary) => {
                let mut pipeline = Pipeline::with_capacity(commands.len());
                for command in commands {
                    pipeline.add_command(command);
                }
                primary.seen(pipeline.query_async(&mut primary.connection()).await)
            }
            Self::Cluster(_) => try_join_all(commands.iter().map(|command| self.send(command))).await,
        }
    }
}

/// The connection to the one node. After a failover the node that it leads to may live on as a replica, which keeps the
/// connection and refuses to write: a new one goes where the name leads now.
pub(crate) struct Primary {
    client: redis::Client,
    config: ConnectionManagerConfig,
    current: Mutex<Current>,
}

struct Current {
    connection: ConnectionManager,
    made_at: Instant,
}

impl Primary {
    fn new(client: redis::Client, config: ConnectionManagerConfig) -> RedisResult<Self> {
        let connection = ConnectionManager::new_lazy_with_config(client.clone(), config.clone())?;
        let made_at = Instant::now();
        Ok(Self {
            client,
            config,
            current: Mutex::new(Current { connection, made_at }),
        })
    }

    fn connection(&self) -> ConnectionManager {
        self.current.lock().connection.clone()
    }

    /// Passes the answer on, and leaves a replica.
    fn seen<T>(&self, answer: RedisResult<T>) -> RedisResult<T> {
        if answer.as_ref().is_err_and(is_of_a_replica) {
            let mut current = self.current.lock();
            if current.made_at.elapsed() >= ANOTHER_AFTER
                && let Ok(connection) =
                    ConnectionManager::new_lazy_with_config(self.client.clone(), self.config.clone())
            {
                tracing::warn!("limits: connected to a replica; connecting again");
                let made_at = Instant::now();
                *current = Current { connection, made_at };
            }
        }
        answer
    }
}

fn is_of_a_replica(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
}

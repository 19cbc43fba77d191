//! The connection for commands: one multiplexed connection, or one a node of a cluster; reconnected for ever.

use std::time::Duration;

use futures_util::future::try_join_all;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::cluster::{ClusterClientBuilder, ClusterConfig};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{Cmd, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisResult, Value};

use crate::ConnectError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);
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
    Single(ConnectionManager),
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
        ConnectionManager::new_lazy_with_config(client, config)
            .map(Self::Single)
            .map_err(ConnectError::Settings)
    }

    pub(crate) fn clustered(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    pub(crate) async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Single(connection) => command.query_async(&mut connection.clone()).await,
            Self::Cluster(connection) => command.query_async(&mut connection.clone()).await,
        }
    }

    /// All at once; the answers are in order. The first error is the answer to all, though others may have been done.
    pub(crate) async fn send_all(&self, commands: Vec<Cmd>) -> RedisResult<Vec<Value>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Self::Single(connection) => {
                let mut pipeline = Pipeline::with_capacity(commands.len());
                for command in commands {
                    pipeline.add_command(command);
                }
                pipeline.query_async(&mut connection.clone()).await
            }
            Self::Cluster(_) => try_join_all(commands.iter().map(|command| self.send(command))).await,
        }
    }
}

//! A link: one live connection and what hangs on it.

use std::sync::Arc;

use lapin::options::ConfirmSelectOptions;
use lapin::tcp::OwnedTLSConfig;
use lapin::{Channel, Connection, ConnectionProperties};
use postrider_broker::BrokerError;
use postrider_telemetry::labels::Service;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::topology::Topology;

/// The current link of a supervisor; none while it connects.
pub(crate) type Links = watch::Receiver<Option<Arc<Link>>>;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Publish,
    Consume,
}

impl Purpose {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Consume => "consume",
        }
    }

    pub(crate) const fn service(self) -> Service {
        match self {
            Self::Publish => Service::BrokerPublish,
            Self::Consume => Service::BrokerConsume,
        }
    }
}

pub(crate) struct Link {
    pub(crate) connection: Connection,
    /// Set for [`Purpose::Publish`].
    pub(crate) outlet: Option<Outlet>,
    /// Cancelled by whoever finds the link unusable; the supervisor then replaces it.
    pub(crate) broken: CancellationToken,
    /// When its last whole declaration of the topology began.
    declared_at: Mutex<Instant>,
}

/// A channel in confirm mode.
pub(crate) struct Outlet {
    pub(crate) channel: Channel,
    /// A permit for each unconfirmed frame.
    pub(crate) window: Arc<Semaphore>,
}

impl Link {
    /// Connects, declares and, for publishing, opens the channel. The caller bounds the time.
    pub(crate) async fn establish(shared: &Shared, purpose: Purpose) -> Result<Self, BrokerError> {
        let name = format!("{} {}", shared.settings.prefix, purpose.as_str());
        let tls = OwnedTLSConfig {
            identity: None,
            cert_chain: shared.settings.ca_pem.clone(),
        };
        let runtime = lapin::runtime::default_runtime().map_err(|error| failed("no runtime", Some(error)))?;
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connection = Connection::connect_uri_with_config(shared.uri.clone(), properties, tls, runtime)
            .await
            .map_err(|error| failed("cannot connect", Some(error)))?;
        let declared_at = Instant::now();
        shared.topology.declare(&connection).await?;
        let outlet = match purpose {
            Purpose::Consume => None,
            Purpose::Publish => Some(Outlet::open(&connection, shared.settings.publish_window).await?),
        };
        Ok(Self {
            connection,
            outlet,
            broken: CancellationToken::new(),
            declared_at: Mutex::new(declared_at),
        })
    }

    /// Declares the topology, unless that was done on this link after a consumer failed: when all fail together, once is
    /// enough for all.
    pub(crate) async fn declare_again(
        &self,
        topology: &Topology,
        failed_at: Instant,
    ) -> Result<(), BrokerError> {
        let mut declared_at = self.declared_at.lock().await;
        if *declared_at <= failed_at {
            let began = Instant::now();
            topology.declare(&self.connection).await?;
            *declared_at = began;
        }
        Ok(())
    }

    /// Whether connection and channel stand, as far as this side knows.
    pub(crate) fn stands(&self) -> bool {
        self.connection.status().connected()
            && self
                .outlet
                .as_ref()
                .is_none_or(|outlet| outlet.channel.status().connected())
    }
}

impl Outlet {
    async fn open(connection: &Connection, window: usize) -> Result<Self, BrokerError> {
        let open = async {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        };
        let channel = open
            .await
            .map_err(|error| failed("cannot open a channel to publish", Some(error)))?;
        Ok(Self {
            channel,
            window: Arc::new(Semaphore::new(window.max(1))),
        })
    }
}

pub(crate) fn failed(message: &str, source: Option<lapin::Error>) -> BrokerError {
    BrokerError {
        message: message.into(),
        source: source.map(Into::into),
    }
}

//! What can be set about the client, and its defaults.

use std::net::SocketAddr;
use std::time::Duration;

/// The smallest limit that the HTTP library takes for a response's head.
const RESPONSE_HEAD_MIN: usize = 8 * 1024;

/// The client's limits. [`Settings::default`] is what production wants.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The time for lookup, TCP and TLS together, inside the request's deadline. Default 5 s.
    pub connect_timeout: Duration,
    /// Idle connections kept per host. Default 256, as many as a host may have in flight: deliveries come in bursts, and a
    /// pool smaller than the burst closes and opens connections all the time. The idle time bounds their number.
    pub idle_per_host_max: usize,
    /// How long an idle connection is kept. Default 20 s.
    pub idle_timeout: Duration,
    /// Age from which a connection ends with the response that it carries, so that traffic follows a receiver that moves
    /// although its old address still answers. Default 60 s: with the 60 s that the resolver keeps an answer, the idle
    /// time and the longest attempt it is followed within three minutes.
    pub connection_age_max: Duration,
    /// Pools to spread hosts over; each has one lock. Default 4.
    pub pools: usize,
    /// Bytes of a response's body that are read before the connection is dropped. Default 16 KiB.
    pub response_read_max: usize,
    /// Bytes of a response's body that are kept. Default 4 KiB.
    pub response_keep_max: usize,
    /// Bytes of a response's status line and headers. Default 64 KiB, at least 8 KiB. The last read may exceed it,
    /// so up to twice as much can be in memory. There are at most 100 headers.
    pub response_head_max: usize,
    /// Root certificates to trust beside the system's, as PEM. Default none.
    pub extra_roots_pem: Vec<u8>,
    /// Name servers to ask over UDP and TCP instead of the system's. Default none.
    pub name_servers: Vec<SocketAddr>,
    /// The `User-Agent` header. Default `Postrider/<version>`.
    pub user_agent: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            idle_per_host_max: 256,
            idle_timeout: Duration::from_secs(20),
            connection_age_max: Duration::from_secs(60),
            pools: 4,
            response_read_max: 16 * 1024,
            response_keep_max: 4 * 1024,
            response_head_max: 64 * 1024,
            extra_roots_pem: Vec::new(),
            name_servers: Vec::new(),
            user_agent: concat!("Postrider/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Why no client can be made of the settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// `connect_timeout` of zero.
    #[error("connect_timeout must be more than 0")]
    ConnectTimeoutZero,
    /// `pools` of zero.
    #[error("pools must be at least 1")]
    NoPools,
    /// `response_head_max` below what the HTTP library needs.
    #[error("response_head_max must be at least {RESPONSE_HEAD_MIN} bytes")]
    ResponseHeadTooSmall,
    /// More is to be kept than read.
    #[error("response_keep_max must not be more than response_read_max")]
    KeepMoreThanRead,
    /// `user_agent` with control characters.
    #[error("user_agent is no valid header value")]
    UserAgent,
    /// `extra_roots_pem` holds no certificate, or something else.
    #[error("the extra root certificates are not PEM certificates")]
    ExtraRoots(#[source] Option<rustls::pki_types::pem::Error>),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

impl Settings {
    /// Checks the values against each other.
    pub(crate) fn validate(&self) -> Result<(), SettingsError> {
        if self.connect_timeout.is_zero() {
            return Err(SettingsError::ConnectTimeoutZero);
        }
        if self.pools == 0 {
            return Err(SettingsError::NoPools);
        }
        if self.response_head_max < RESPONSE_HEAD_MIN {
            return Err(SettingsError::ResponseHeadTooSmall);
        }
        if self.response_keep_max > self.response_read_max {
            return Err(SettingsError::KeepMoreThanRead);
        }
        Ok(())
    }
}

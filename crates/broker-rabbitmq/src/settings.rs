//! What can be set.

use std::fmt;
use std::time::Duration;

use lapin::uri::AMQPUri;
use postrider_broker::BrokerError;

use crate::link::failed;

/// Heartbeat that is asked for when the URL names none, in seconds: a silent peer is noticed after two.
const HEARTBEAT_SECS: u16 = 10;

/// How to reach RabbitMQ and how hard to lean on it.
#[derive(Clone)]
pub struct Settings {
    /// `amqp://` or `amqps://`, with user, password and virtual host (`%2f` for the default one).
    pub url: String,
    /// Certificate authorities in PEM for `amqps://`, beside the system's.
    pub ca_pem: Option<String>,
    /// What names of exchanges and queues start with; 1 to 100 bytes.
    pub prefix: String,
    /// `deliver` and `retry` queues each; 1 to 256. Every process must have the same.
    pub shards: u16,
    /// How long a publish may take until it is confirmed.
    pub publish_timeout: Duration,
    /// Unconfirmed frames at a time.
    pub publish_window: usize,
    /// Largest frame that is sent. RabbitMQ 4 ends the channel of whoever sends more than 16 MiB.
    pub max_frame_bytes: usize,
    /// How long connecting, opening a channel or declaring may take.
    pub connect_timeout: Duration,
    /// First delay before connecting again; a random part of it is waited.
    pub reconnect_min: Duration,
    /// Delays double up to this.
    pub reconnect_max: Duration,
    /// Returns after which RabbitMQ moves a frame to `stray`. Part of the queues' identity: changing it needs new queues.
    pub delivery_limit: u32,
}

impl Default for Settings {
    /// A local RabbitMQ as it is after installation.
    fn default() -> Self {
        Self {
            url: "amqp://127.0.0.1:5672/%2f".into(),
            ca_pem: None,
            prefix: "postrider".into(),
            shards: 4,
            publish_timeout: Duration::from_secs(10),
            publish_window: 128,
            max_frame_bytes: 16 * 1024 * 1024,
            connect_timeout: Duration::from_secs(10),
            reconnect_min: Duration::from_millis(200),
            reconnect_max: Duration::from_secs(15),
            delivery_limit: 1_000_000,
        }
    }
}

impl Settings {
    /// The URL, with the limits that it leaves open.
    pub(crate) fn uri(&self) -> Result<AMQPUri, BrokerError> {
        // The parser's message may quote the URL, which holds a password.
        let mut uri: AMQPUri = self
            .url
            .parse()
            .map_err(|_| failed("the URL is not amqp://user:password@host:port/vhost", None))?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECS);
        let millis = u64::try_from(self.connect_timeout.as_millis()).unwrap_or(u64::MAX);
        uri.query.connection_timeout.get_or_insert(millis);
        Ok(uri)
    }
}

/// Without the URL, which holds a password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("prefix", &self.prefix)
            .field("shards", &self.shards)
            .field("publish_timeout", &self.publish_timeout)
            .field("publish_window", &self.publish_window)
            .field("max_frame_bytes", &self.max_frame_bytes)
            .field("connect_timeout", &self.connect_timeout)
            .field("reconnect_min", &self.reconnect_min)
            .field("reconnect_max", &self.reconnect_max)
            .field("delivery_limit", &self.delivery_limit)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_debug_nor_errors_show_the_password() {
        let good = Settings {
            url: "amqp://me:hunter2@host/%2f".into(),
            ..Settings::default()
        };
        assert!(!format!("{good:?}").contains("hunter2"));
        let bad = Settings {
            url: "amqp://me:hunter2@host:port/%2f".into(),
            ..Settings::default()
        };
        let error = bad.uri().unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
}

//! The services that a scaled-out Postrider leans on, and its own keys.

use std::path::PathBuf;

use postrider_secrets::RedactedUrl;
use secrecy::SecretString;

use crate::setting::{Any, Between, Name, settings};
use crate::values::{ByteSize, Period};

settings! {
    /// RabbitMQ, between the roles.
    Broker in "broker" {
        /// `amqp://` or `amqps://` URL of RabbitMQ. Without it the broker is in the process, which then runs all
        /// roles.
        url: Option<RedactedUrl> = None, Any;
        /// File of certificate authorities (PEM) to trust for `amqps://`, beside the system's.
        ca_file: Option<PathBuf> = None, Any;
        /// Number of delivery queues, and as many for retries. Every process must have the same.
        shards: u16 = 4, Between(1, 256);
        /// What the names of queues and exchanges start with. Every process must have the same.
        prefix: String = "postrider".to_owned(), Name;
        /// Time for connecting and for declaring a queue.
        connect_timeout: Period = Period::secs(10), Between(Period::millis(100), Period::secs(60));
        /// Time until RabbitMQ confirms a published frame; the publisher counts it as failed after it.
        publish_timeout: Period = Period::secs(5), Between(Period::millis(100), Period::secs(60));
        /// Frames published and not yet confirmed, per process.
        publish_window: usize = 128, Between(1, 10_000);
        /// Longest delay between two attempts to connect again. They never stop.
        reconnect_max_delay: Period = Period::secs(15), Between(Period::secs(1), Period::secs(300));
        /// Deliveries or journal records in one frame.
        envelope_max_deliveries: usize = 512, Between(1, 4_096);
        /// Bytes of one frame; a single larger body makes a frame of its own, with its deliveries.
        envelope_max_bytes: ByteSize = ByteSize::kib(256), Between(ByteSize::kib(16), ByteSize::mib(8));
    }
}

settings! {
    /// Redis or Valkey, for what several processes share.
    Redis in "redis" {
        /// `redis://` or `rediss://` URL; several separated by commas, or `redis+cluster://` and `rediss+cluster://`, are nodes of a
        /// cluster. Required with `broker.url`; without both the limits are kept in the process.
        url: Option<RedactedUrl> = None, Any;
        /// What all keys start with. Every process must have the same.
        prefix: String = "postrider".to_owned(), Name;
        /// Time for one call; after it the process goes on with what it knows itself.
        timeout: Period = Period::millis(250), Between(Period::millis(10), Period::millis(750));
    }
}

settings! {
    /// The database.
    Store in "store" {
        /// `postgres://` URL, which needs `broker.url`, or `sqlite:///path/to/file`. Without it a SQLite file in the data directory.
        url: Option<RedactedUrl> = None, Any;
        /// Postgres connections for lists and other reads of the API, per process.
        read_connections: u32 = 10, Between(1, 500);
        /// Postgres connections for everything else, per process.
        write_connections: u32 = 6, Between(2, 500);
    }
}

settings! {
    /// Who may do everything.
    Auth in "auth" {
        /// API key with all rights, of 16 to 512 ASCII characters without white space. Required with a broker URL; otherwise the first start
        /// makes one and prints it once.
        admin_key: Option<SecretString> = None, Any;
    }
}

settings! {
    /// Encryption at rest of endpoint secrets, credentials and payloads.
    Secrets in "secrets" {
        /// `psk_` and the base64 of 32 random bytes; to rotate, several separated by commas, the new one first.
        /// Required with a broker URL; otherwise the first start makes one in the data directory. What was sealed
        /// with a lost key is lost.
        key: Option<SecretString> = None, Any;
    }
}

pub(crate) fn is_postgres(url: &RedactedUrl) -> bool {
    matches!(url.scheme().as_str(), "postgres" | "postgresql")
}

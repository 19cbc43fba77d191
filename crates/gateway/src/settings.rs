//! The gateway's settings. Every limit has its default here.

use std::time::Duration;

use secrecy::SecretString;

/// Settings of a [`crate::Gateway`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// An admin key that needs no store.
    pub admin_key: Option<SecretString>,
    /// Number of `deliver` queues; the same in every process.
    pub shards: u16,
    /// Largest body of a request, in bytes.
    pub body_bytes_max: usize,
    /// Largest body of a batch, in bytes.
    pub batch_bytes_max: usize,
    /// Most messages of a batch.
    pub batch_messages_max: usize,
    /// Most endpoints that one message may go to.
    pub fan_out_max: usize,
    /// Most deliveries that one request may make.
    pub request_fan_out_max: usize,
    /// Most endpoints of an application.
    pub endpoints_max: u32,
    /// Messages a second of an application that has no rate of its own; `None` means no limit.
    pub throttle_rate: Option<u32>,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// Requests in progress at once; more wait for a second, then get 503.
    pub requests_max: usize,
    /// Memory for bodies of requests in progress, in bytes; at least that of a batch.
    pub body_memory_max: usize,
    /// Memory for cached applications, in bytes (estimated).
    pub cache_bytes_max: u64,
    /// Frames in the journal above which new messages are refused, leaving room for outcomes.
    pub journal_depth_max: u64,
    /// How long a read waits for the record of a young message.
    pub record_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            admin_key: None,
            shards: 4,
            body_bytes_max: 1 << 20,
            batch_bytes_max: 8 << 20,
            batch_messages_max: 1000,
            fan_out_max: 10_000,
            request_fan_out_max: 20_000,
            endpoints_max: 20_000,
            throttle_rate: None,
            request_timeout: Duration::from_secs(30),
            requests_max: 4096,
            body_memory_max: 256 << 20,
            cache_bytes_max: 256 << 20,
            journal_depth_max: 100_000,
            record_wait: Duration::from_secs(2),
        }
    }
}

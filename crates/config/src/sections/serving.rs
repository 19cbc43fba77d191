//! What the process listens on, what it accepts there, and what it tells: metrics, logs, traces.

use std::net::SocketAddr;
use std::path::PathBuf;

use postrider_secrets::RedactedUrl;

use crate::setting::{Any, Between, settings};
use crate::values::{ByteSize, LogFormat, Period, Ratio};

settings! {
    /// The listeners.
    Server in "server" {
        /// Time for one request of the API.
        request_timeout: Period = Period::secs(30), Between(Period::secs(6), Period::secs(300));
        /// Requests in progress; more wait for a second and are then answered 503.
        requests_max: usize = 4_096, Between(1, 100_000);
        /// Connections open; more wait to be accepted.
        connections_max: usize = 10_000, Between(1, 1_000_000);
        /// How long a connection of HTTP/1.1 may take until the head of its first or next request is there. More than what a load
        /// balancer before it keeps idle connections for, or that one meets connections that end just when it uses them.
        idle_timeout: Period = Period::secs(75), Between(Period::secs(5), Period::secs(3_600));
        /// Memory for bodies of requests in progress.
        body_memory_max: ByteSize = ByteSize::mib(256), Between(ByteSize::mib(1), ByteSize::mib(65_536));
        /// Memory for applications' configuration that is cached, as estimated.
        cache_max_bytes: ByteSize = ByteSize::mib(256), Between(ByteSize::mib(1), ByteSize::mib(65_536));
        /// File of the certificate chain (PEM) for TLS on all listeners. With `server.tls_key` or not at all.
        tls_cert: Option<PathBuf> = None, Any;
        /// File of the certificate's private key (PEM).
        tls_key: Option<PathBuf> = None, Any;
    }
}

settings! {
    /// Prometheus.
    Metrics in "metrics" {
        /// Address and port at which `/metrics` is served, usually port 9464. Without it metrics are not served.
        listen: Option<SocketAddr> = None, Any;
    }
}

settings! {
    /// What a gateway accepts.
    Ingest in "ingest" {
        /// Bytes of one request's body that is no batch, so of one message.
        message_max_bytes: ByteSize = ByteSize::mib(1), Between(ByteSize::kib(1), ByteSize::mib(8));
        /// Bytes of a batch's body.
        batch_max_bytes: ByteSize = ByteSize::mib(8), Between(ByteSize::kib(1), ByteSize::mib(64));
        /// Messages in a batch.
        batch_max_messages: usize = 1_000, Between(1, 10_000);
        /// Endpoints that one message may go to.
        fanout_max: usize = 10_000, Between(1, 20_000);
        /// Endpoints of one application.
        endpoints_max: u32 = 20_000, Between(1, 100_000);
        /// Messages a second of an application that has no rate of its own; no quota without it.
        app_rate: Option<u32> = None, Between(1, 1_000_000);
        /// Frames in the journal above which messages are refused with 503, so that outcomes still have room.
        journal_max_frames: u64 = 100_000, Between(100, 10_000_000);
        /// How long a read waits for the record of a message that was accepted just now, before 503 (404 where it was asked for
        /// by `eventId`).
        record_wait: Period = Period::secs(2), Between(Period::millis(0), Period::secs(5));
    }
}

settings! {
    /// Log lines, on standard error.
    Log in "log" {
        /// `text` for people, `json` for machines.
        format: LogFormat = LogFormat::Text, Any;
        /// `error`, `warn`, `info`, `debug`, `trace` or `off`, or a list such as `info,lapin=warn`.
        level: String = "info".to_owned(), Any;
    }
}

settings! {
    /// Spans, sent to an OpenTelemetry collector.
    Traces in "traces" {
        /// Base URL of a collector that takes OTLP over HTTP (protobuf), such as `http://collector:4318`; `/v1/traces` is
        /// added. A user and password in it are sent as basic authentication. No traces without it.
        endpoint: Option<RedactedUrl> = None, Any;
        /// Part of the requests without a `traceparent` header that are recorded. With one its sampled flag decides. For
        /// gateways; workers record the attempts of every message that was recorded.
        sample_ratio: Ratio = Ratio::percent(1), Between(Ratio::NONE, Ratio::WHOLE);
        /// Deadline of a request to the collector.
        timeout: Period = Period::secs(10), Between(Period::millis(100), Period::secs(60));
        /// Finished spans held until they are sent; what comes on top is dropped and counted.
        queue_max_spans: usize = 8_192, Between(512, 1_000_000);
    }
}

//! Traces: the way of a message from its request to each attempt, over all processes.
//!
//! Spans, as OpenTelemetry's conventions for HTTP and messaging name and link them:
//!
//! | span | kind | in | parent or link |
//! |---|---|---|---|
//! | `POST /api/v1/app/{app_id}/msg` | server | gateway | the producer's `traceparent`, else a root |
//! | `publish deliver` | producer | gateway | child of the one before; ends with the broker's confirm |
//! | `consume deliver`, `consume retry` | consumer | worker | root of an attempt's own trace, **linked** to `publish`; ends when the delivery is settled |
//! | `POST` | client | worker | child of the one before |
//!
//! So there is one trace per request and one per attempt. The message carries the context of its `publish` span
//! (`traceparent` of `postrider.v1.Message`), in envelopes and in the record, so a retry a day later links to it too.
//! The recorder and the scheduler make no spans.
//!
//! Whether a trace is recorded is decided once: by the producer's sampled flag, or for requests without a
//! `traceparent` by the ratio. Workers record the attempts of messages whose context is sampled, whatever their own
//! ratio is.
//!
//! Guarantees: without a [`Tracer`] nothing is allocated; an unsampled message costs a look at its context. Nothing
//! waits for the collector ([`export`]). No payload, header, secret, or path or query of a receiver's URL becomes an
//! attribute.

mod context;
mod export;
mod otlp;
mod spans;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use self::export::{Exporter, Queue};
use self::otlp::attribute;
use crate::metrics::Metrics;

pub use context::TraceContext;
pub use spans::Published;

/// How long [`Exporting::finish`] waits for what is in the queue.
const FINISH_MAX: Duration = Duration::from_secs(5);

/// Where spans go and which.
#[derive(Clone)]
pub struct TraceSettings {
    /// Base URL of a collector that takes OTLP over HTTP; may hold a password, which is sent as basic authentication.
    pub endpoint: String,
    /// Part of the requests without a `traceparent` that are recorded, 0 to 1.
    pub sample_ratio: f64,
    /// Longest that one request to the collector may take.
    pub timeout: Duration,
    /// Finished spans held at once; what comes on top is dropped.
    pub queue_max: usize,
    /// What the process does, such as `gateway` or `worker,ledger`.
    pub roles: String,
    /// `messaging.system`: `rabbitmq`, or `in_process`.
    pub messaging_system: &'static str,
}

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The endpoint is no URL.
    #[error("the collector's URL does not parse")]
    Url(#[source] url::ParseError),
    /// No HTTP client.
    #[error("the client for the collector cannot be made")]
    Client(#[source] reqwest::Error),
}

/// Makes spans. A clone is the same tracer.
#[derive(Clone, Debug)]
pub struct Tracer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: Queue,
    ratio: f64,
    system: &'static str,
}

/// The task that exports.
#[derive(Debug)]
pub struct Exporting {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Tracer {
    /// Starts exporting; call it inside a Tokio runtime.
    ///
    /// # Errors
    /// When the endpoint is no URL, or no HTTP client can be made.
    pub fn start(settings: TraceSettings, metrics: Arc<Metrics>) -> Result<(Self, Exporting), TraceError> {
        let resource = otlp::Resource {
            attributes: vec![
                attribute("service.name", "postrider"),
                attribute("service.version", env!("CARGO_PKG_VERSION")),
                attribute("service.instance.id", format!("{:032x}", rand::random::<u128>())),
                attribute("postrider.roles", settings.roles),
                attribute("telemetry.sdk.language", "rust"),
            ],
        };
        let (timeout, queue_max) = (settings.timeout, settings.queue_max);
        let (queue, exporter) = Exporter::new(&settings.endpoint, timeout, queue_max, resource, metrics)?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(exporter.run(stopped));
        let tracer = Self(Arc::new(Inner {
            queue,
            ratio: settings.sample_ratio,
            system: settings.messaging_system,
        }));
        Ok((tracer, Exporting { stop, task }))
    }

    fn span(&self, context: TraceContext, name: String, kind: otlp::Kind) -> Span {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let data = otlp::Span {
            trace_id: context.trace.to_vec(),
            span_id: context.span.to_vec(),
            name,
            kind: kind.into(),
            start_time_unix_nano: nanos(since_epoch.unwrap_or_default()),
            flags: context.flags(),
            ..otlp::Span::default()
        };
        Span {
            context,
            data,
            started: Instant::now(),
            queue: self.0.queue.clone(),
        }
    }
}

impl Exporting {
    /// Exports what has ended by now; takes 5 s at most. Spans that end later are dropped.
    pub async fn finish(self) {
        let _ = self.stop.send(());
        if tokio::time::timeout(FINISH_MAX, self.task).await.is_err() {
            tracing::warn!("the last spans were not exported in time");
        }
    }
}

/// A span under way. It ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    context: TraceContext,
    data: otlp::Span,
    started: Instant,
    queue: Queue,
}

impl Span {
    /// As the `traceparent` header has it.
    pub fn traceparent(&self) -> String {
        self.context.to_string()
    }

    fn set(&mut self, key: &str, value: impl Into<otlp::Value>) {
        self.data.attributes.push(attribute(key, value));
    }

    /// Marks it as failed; `kind` is one of few words (`error.type`).
    pub fn fail(&mut self, kind: &str) {
        self.set("error.type", kind);
        self.data.status = Some(otlp::Status { code: 2 });
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let mut data = std::mem::take(&mut self.data);
        data.end_time_unix_nano = data
            .start_time_unix_nano
            .saturating_add(nanos(self.started.elapsed()));
        self.queue.push(data);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

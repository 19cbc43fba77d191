//! An OpenTelemetry collector for tests: takes OTLP over HTTP, and decodes it with OpenTelemetry's own messages.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;

use crate::receiver::{Receiver, Recorded, Script};
use crate::wait::{Poll, wait_for};

const PATH: &str = "/v1/traces";

/// The collector; it ends when this is dropped.
#[derive(Debug)]
pub struct Collector(Receiver);

/// A span as it came, ids in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// `server`, `client`, `producer`, `consumer` or `internal`.
    pub kind: &'static str,
    /// The trace that it belongs to.
    pub trace: String,
    /// Its id.
    pub id: String,
    /// Its parent's id; empty for a root.
    pub parent: String,
    /// Traces and spans that it links to.
    pub links: Vec<(String, String)>,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// The attributes of what sent it.
    pub resource: BTreeMap<String, String>,
    /// Whether it failed.
    pub failed: bool,
    /// Whether its flags say sampled.
    pub sampled: bool,
    /// How long it took.
    pub duration: Duration,
}

impl Collector {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub async fn start() -> Result<Self> {
        Receiver::start().await.map(Self)
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        self.0.url("")
    }

    /// From now on it answers by `script`.
    pub fn on(&self, script: Script) {
        self.0.on(PATH, script);
    }

    /// What was POSTed, as it came.
    pub fn requests(&self) -> Vec<Recorded> {
        self.0.requests(PATH)
    }

    /// Every span so far, in the order of arrival.
    ///
    /// # Errors
    /// Something came that is no request of OTLP over HTTP, or too much to record.
    pub fn spans(&self) -> Result<Vec<Span>> {
        let total = self.0.total() + self.0.unrecorded();
        ensure!(
            total == self.0.count(PATH),
            "something came to another path, or too much"
        );
        let mut spans = vec![];
        for request in self.requests() {
            ensure!(
                request.header("content-type") == Some("application/x-protobuf"),
                "not protobuf: {request:?}"
            );
            let request = ExportTraceServiceRequest::decode(request.body.as_ref())
                .context("what came is no ExportTraceServiceRequest")?;
            for group in request.resource_spans {
                let resource = texts(&group.resource.unwrap_or_default().attributes);
                for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                    spans.push(read(&span, &resource));
                }
            }
        }
        Ok(spans)
    }

    /// Waits until `holds` is true of the spans, and returns them.
    ///
    /// # Errors
    /// It does not hold within `limit`; the error shows them. As [`Collector::spans`].
    pub async fn wait_for(
        &self,
        limit: Duration,
        mut holds: impl FnMut(&[Span]) -> bool,
    ) -> Result<Vec<Span>> {
        wait_for("the spans", limit, async || {
            let spans = self.spans()?;
            Ok(if holds(&spans) {
                Poll::Ready(spans)
            } else {
                Poll::NotYet(format!("{spans:#?}"))
            })
        })
        .await
    }
}

fn read(span: &opentelemetry_proto::tonic::trace::v1::Span, resource: &BTreeMap<String, String>) -> Span {
    let links = span
        .links
        .iter()
        .map(|link| (hex(&link.trace_id), hex(&link.span_id)));
    let took = span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano);
    Span {
        name: span.name.clone(),
        kind: match span.kind() {
            SpanKind::Server => "server",
            SpanKind::Client => "client",
            SpanKind::Producer => "producer",
            SpanKind::Consumer => "consumer",
            SpanKind::Internal | SpanKind::Unspecified => "internal",
        },
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        links: links.collect(),
        attributes: texts(&span.attributes),
        resource: resource.clone(),
        failed: span
            .status
            .as_ref()
            .is_some_and(|status| status.code() == StatusCode::Error),
        sampled: span.flags & 1 == 1,
        duration: Duration::from_nanos(took),
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| {
        let value = match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            other => format!("{other:?}"),
        };
        (attribute.key.clone(), value)
    };
    attributes.iter().map(text).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

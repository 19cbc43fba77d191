//! What a delivery has to do with traces: its own spans, when its message is recorded, and the `traceparent` that its
//! receiver gets, when its application wants that.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use postrider_model::{Application, AttemptId, Job};
use postrider_telemetry::trace::{Span, Tracer};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Goes with a delivery from the frame to its settlement; dropping it ends the span.
#[derive(Debug)]
pub(crate) struct Trace {
    consume: Option<Box<Span>>,
    /// Whether the receiver is told.
    propagate: bool,
}

impl Trace {
    pub(crate) fn new(tracer: Option<&Tracer>, job: &Job, application: &Application) -> Self {
        Self {
            consume: tracer.and_then(|tracer| tracer.consume(job)),
            propagate: application.propagate_traceparent,
        }
    }

    /// The span of an attempt.
    pub(crate) fn attempt(
        &self,
        tracer: Option<&Tracer>,
        job: &Job,
        id: AttemptId,
        url: &str,
    ) -> Option<Span> {
        let (tracer, consume) = tracer.zip(self.consume.as_deref())?;
        Some(tracer.attempt(consume, job, id, url))
    }

    /// The header for the receiver: the attempt's own context, or without one what the producer gave.
    pub(crate) fn propagate(&self, span: Option<&Span>, job: &Job, headers: &mut HeaderMap) {
        if !self.propagate {
            return;
        }
        let own = span.map(Span::traceparent);
        let given = own.as_deref().or(job.message.traceparent.as_deref());
        if let Some(value) = given.and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(TRACEPARENT, value);
        }
    }
}

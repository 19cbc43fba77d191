//! Postrider's four spans and their attributes.
//!
//! Names are those of OpenTelemetry's semantic conventions (HTTP: stable; messaging: development) where they have one,
//! `postrider.*` otherwise. `url.full`, which the conventions ask for, is left out: receivers have tokens in paths.

use postrider_model::{AppId, AttemptClass, AttemptId, Job, MessageId, Next};
use url::Url;

use super::otlp::{Kind, Link};
use super::{Span, TraceContext, Tracer};
use crate::labels::{Label as _, Outcome};

/// What a request publishes.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// The application.
    pub app: AppId,
    /// Its message, if it is one.
    pub message: Option<MessageId>,
    /// Messages of the request.
    pub messages: usize,
}

impl Tracer {
    /// The span of a request that sends messages; `None` when it is not recorded. `producer` is its `traceparent`.
    pub fn ingest(&self, method: &str, route: &str, producer: Option<&str>) -> Option<Span> {
        let producer = producer.and_then(TraceContext::parse);
        let context = match producer {
            Some(producer) => producer.sampled.then(|| producer.child())?,
            None => Some(TraceContext::root()).filter(|root| root.is_chosen(self.0.ratio))?,
        };
        let mut span = self.span(context, format!("{method} {route}"), Kind::Server);
        if let Some(producer) = producer {
            span.data.parent_span_id = producer.span.to_vec();
        }
        span.set("http.request.method", method);
        span.set("http.route", route);
        Some(span)
    }

    /// The span of a publication; `None` when its request, whose `traceparent` this is, is not recorded.
    pub fn publish(&self, ingest: Option<&str>) -> Option<Span> {
        let ingest = ingest
            .and_then(TraceContext::parse)
            .filter(|context| context.sampled)?;
        let mut span = self.span(ingest.child(), "publish deliver".to_owned(), Kind::Producer);
        span.data.parent_span_id = ingest.span.to_vec();
        self.messaging(&mut span, "publish", "send", "deliver");
        Some(span)
    }

    /// The span of a delivery's run in a worker, the root of the attempt's trace; `None` when its message is not
    /// recorded.
    pub fn consume(&self, job: &Job) -> Option<Box<Span>> {
        let published = job.message.traceparent.as_deref()?;
        let published = TraceContext::parse(published).filter(|context| context.sampled)?;
        let queue = if job.run == 0 { "deliver" } else { "retry" };
        let mut span = self.span(TraceContext::root(), format!("consume {queue}"), Kind::Consumer);
        span.data.links.push(Link {
            trace_id: published.trace.to_vec(),
            span_id: published.span.to_vec(),
            flags: published.flags(),
        });
        self.messaging(&mut span, "consume", "process", queue);
        span.set("messaging.message.id", job.message.id.to_string());
        span.set("postrider.app.id", job.message.app.to_string());
        span.set("postrider.endpoint.id", job.endpoint.to_string());
        span.set("postrider.delivery.id", job.delivery.to_string());
        span.set("postrider.delivery.run", i64::from(job.run));
        Some(Box::new(span))
    }

    /// The span of an attempt. `url` is the endpoint's; its host and port alone are told.
    pub fn attempt(&self, consume: &Span, job: &Job, id: AttemptId, url: &str) -> Span {
        let mut span = self.span(consume.context.child(), "POST".to_owned(), Kind::Client);
        span.data.parent_span_id = consume.context.span.to_vec();
        span.set("http.request.method", "POST");
        if job.attempts > 0 {
            span.set("http.request.resend_count", i64::from(job.attempts));
        }
        if let Ok(url) = Url::parse(url) {
            span.set("url.scheme", url.scheme());
            span.set("server.address", url.host_str().unwrap_or_default());
            span.set(
                "server.port",
                i64::from(url.port_or_known_default().unwrap_or_default()),
            );
        }
        span.set("messaging.message.id", job.message.id.to_string());
        span.set("postrider.attempt.id", id.to_string());
        span
    }

    fn messaging(&self, span: &mut Span, operation: &str, kind: &str, queue: &str) {
        span.set("messaging.system", self.0.system);
        span.set("messaging.operation.name", operation);
        span.set("messaging.operation.type", kind);
        span.set("messaging.destination.name", queue);
    }
}

impl Span {
    /// Of an ingest span: what was answered.
    pub fn answered(&mut self, status: u16) {
        self.set("http.response.status_code", i64::from(status));
        if status >= 500 {
            self.fail(&status.to_string());
        }
    }

    /// Of a publish span: what is published.
    pub fn published(&mut self, what: Published) {
        self.set("postrider.app.id", what.app.to_string());
        match what.message {
            Some(message) => self.set("messaging.message.id", message.to_string()),
            None => self.set(
                "messaging.batch.message_count",
                i64::try_from(what.messages).unwrap_or(i64::MAX),
            ),
        }
    }

    /// Of an attempt's span: what it met (`None` is a failure of ours; `status` is 0 without a response) and what
    /// becomes of the delivery.
    pub fn met(&mut self, class: Option<AttemptClass>, status: u16, next: &Next) {
        if status > 0 {
            self.set("http.response.status_code", i64::from(status));
        }
        match class {
            Some(AttemptClass::Success) => {}
            Some(AttemptClass::Status) => self.fail(&status.to_string()),
            Some(class) => self.fail(Outcome::of(class, status).as_str()),
            None => self.fail("ours"),
        }
        let next = match next {
            Next::Delivered => "delivered",
            Next::Retry { .. } => "retry",
            Next::Exhausted { .. } => "exhausted",
            Next::Cancelled(_) => "cancelled",
            Next::Deferred { .. } => "deferred",
            Next::InFlight { .. } => "in_flight",
        };
        self.set("postrider.delivery.next", next);
    }
}

//! Spans out: a bounded queue, and one task that POSTs what is in it to a collector (OTLP over HTTP, protobuf).
//!
//! Nobody waits for it. A span that finds the queue full is dropped; a batch that the collector does not take within
//! its tries is gone. Both are counted, and logged once a minute at most.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::TraceError;
use super::otlp::{ExportRequest, ExportResponse, Resource, ResourceSpans, Scope, ScopeSpans, Span};
use crate::error_chain;
use crate::labels::SpanFate;
use crate::metrics::Metrics;

/// Spans of one request.
const BATCH_MAX: usize = 512;
/// How long a span waits for others to go with it.
const LINGER: Duration = Duration::from_secs(1);
/// How often a batch is sent, and the pause before each further time.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);
/// Between two log lines about spans that were lost.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Bytes of an answer that are read.
const ANSWER_MAX: usize = 64 * 1024;

/// Where finished spans go.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    sender: mpsc::Sender<Span>,
    metrics: Arc<Metrics>,
}

impl Queue {
    pub(super) fn push(&self, span: Span) {
        if self.sender.try_send(span).is_err() {
            self.metrics.spans(SpanFate::Dropped, 1);
        }
    }
}

/// Sends what is in the queue until it is closed.
pub(super) struct Exporter {
    client: reqwest::Client,
    url: Url,
    /// User and password that the URL had.
    login: Option<(String, String)>,
    timeout: Duration,
    resource: Resource,
    spans: mpsc::Receiver<Span>,
    metrics: Arc<Metrics>,
    /// Lost since the last line, and when that was.
    lost: usize,
    said: Option<Instant>,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("the collector cannot be reached")]
    Send(#[source] reqwest::Error),
    #[error("the collector did not answer in time")]
    Timeout,
    #[error("the collector answered {0}")]
    Status(u16),
}

impl ExportError {
    /// What may go better the next time (OTLP 1.x, "Retryable Response Codes").
    fn is_transient(&self) -> bool {
        match self {
            Self::Send(_) | Self::Timeout => true,
            Self::Status(status) => matches!(status, 429 | 502 | 503 | 504),
        }
    }
}

impl Exporter {
    /// `endpoint` is a collector's base URL; `/v1/traces` is added.
    pub(super) fn new(
        endpoint: &str,
        timeout: Duration,
        queue_max: usize,
        resource: Resource,
        metrics: Arc<Metrics>,
    ) -> Result<(Queue, Self), TraceError> {
        let mut url = Url::parse(endpoint).map_err(TraceError::Url)?;
        let login = (!url.username().is_empty() || url.password().is_some()).then(|| {
            let part = |text: &str| percent_decoded(text);
            (part(url.username()), part(url.password().unwrap_or_default()))
        });
        // From here on no error and no log line can show them. They fail for URLs without a host alone.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.path_segments_mut()
            .map_err(|()| TraceError::Url(url::ParseError::RelativeUrlWithoutBase))?
            .pop_if_empty()
            .extend(["v1", "traces"]);
        let client = reqwest::Client::builder()
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(TraceError::Client)?;
        let (sender, spans) = mpsc::channel(queue_max.max(1));
        let queue = Queue {
            sender,
            metrics: metrics.clone(),
        };
        let exporter = Self {
            client,
            url,
            login,
            timeout,
            resource,
            spans,
            metrics,
            lost: 0,
            said: None,
        };
        Ok((queue, exporter))
    }

    /// Until `stop`, and then what is in the queue.
    pub(super) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                _ = &mut stop, if !stopping => {
                    stopping = true;
                    self.spans.close();
                    continue;
                }
                () = gather(&mut self.spans, &mut batch) => {}
            }
            let count = batch.len();
            if count == 0 {
                return;
            }
            match self.send(std::mem::take(&mut batch)).await {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    self.metrics.spans(SpanFate::Exported, count - rejected);
                    if rejected > 0 {
                        self.lose(rejected, "the collector rejected them");
                    }
                }
                Err(error) => self.lose(count, &error_chain(&error)),
            }
        }
    }

    fn lose(&mut self, count: usize, why: &str) {
        self.metrics.spans(SpanFate::Failed, count);
        self.lost += count;
        if self.said.is_none_or(|said| said.elapsed() >= LOG_EVERY) {
            tracing::warn!(spans = self.lost, error = why, "spans were not exported");
            self.said = Some(Instant::now());
            self.lost = 0;
        }
    }

    /// Sends a batch; how many spans of it the collector did not want.
    async fn send(&self, spans: Vec<Span>) -> Result<usize, ExportError> {
        let request = ExportRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(Scope {
                        name: "postrider".to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                    }),
                    spans,
                }],
            }],
        };
        let body = request.encode_to_vec();
        let mut tried = 0;
        loop {
            tried += 1;
            let sent = timeout(self.timeout, self.post(body.clone())).await;
            match sent.unwrap_or(Err(ExportError::Timeout)) {
                Err(error) if error.is_transient() && tried < TRIES => sleep(PAUSE * tried).await,
                result => return result,
            }
        }
    }

    async fn post(&self, body: Vec<u8>) -> Result<usize, ExportError> {
        let mut request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/x-protobuf")
            .body(body);
        if let Some((user, password)) = &self.login {
            request = request.basic_auth(user, Some(password));
        }
        let send = |error: reqwest::Error| ExportError::Send(error.without_url());
        let mut response = request.send().await.map_err(send)?;
        if !response.status().is_success() {
            return Err(ExportError::Status(response.status().as_u16()));
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(send)? {
            if answer.len() + chunk.len() > ANSWER_MAX {
                return Ok(0);
            }
            answer.extend_from_slice(&chunk);
        }
        // An answer that cannot be read is still a success.
        let answer = ExportResponse::decode(answer.as_slice()).unwrap_or_default();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(usize::try_from(rejected).unwrap_or_default())
    }
}

/// Waits for a span and then a while for more. What it has got is in the batch whenever it is dropped; an empty batch
/// means that the queue was closed and is empty.
async fn gather(spans: &mut mpsc::Receiver<Span>, batch: &mut Vec<Span>) {
    if batch.is_empty() && spans.recv_many(batch, BATCH_MAX).await == 0 {
        return;
    }
    let deadline = Instant::now() + LINGER;
    while batch.len() < BATCH_MAX {
        let room = BATCH_MAX - batch.len();
        match tokio::time::timeout_at(deadline, spans.recv_many(batch, room)).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// A URL keeps user and password encoded.
fn percent_decoded(text: &str) -> String {
    let query = format!("v={}", text.replace('+', "%2B").replace('&', "%26"));
    let decoded = url::form_urlencoded::parse(query.as_bytes()).next();
    decoded.map(|(_, value)| value.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exporter(endpoint: &str, metrics: &Arc<Metrics>) -> (Queue, Exporter) {
        let timeout = Duration::from_secs(1);
        Exporter::new(endpoint, timeout, 1, Resource::default(), metrics.clone()).unwrap()
    }

    #[test]
    fn what_finds_the_queue_full_is_dropped_and_counted() {
        let metrics = Metrics::new();
        let (queue, _exporter) = exporter("http://127.0.0.1:1", &metrics);
        queue.push(Span::default());
        queue.push(Span::default());
        let text = metrics.render();
        assert!(
            text.contains("postrider_trace_spans_total{result=\"dropped\"} 1"),
            "{text}"
        );
    }

    #[test]
    fn the_login_leaves_the_url() {
        let metrics = Metrics::new();
        let (_, exporter) = exporter("https://a%40b:p%25+%26@collector/otlp/", &metrics);
        assert_eq!(exporter.url.as_str(), "https://collector/otlp/v1/traces");
        assert_eq!(exporter.login, Some(("a@b".to_owned(), "p%+&".to_owned())));
        assert!(Exporter::new("mailto:a@b", Duration::ZERO, 1, Resource::default(), metrics).is_err());
    }

    #[test]
    fn only_what_may_go_better_is_sent_again() {
        let transient =
            [429, 502, 503, 504, 400, 401, 500].map(|status| ExportError::Status(status).is_transient());
        assert_eq!(transient, [true, true, true, true, false, false, false]);
        assert!(ExportError::Timeout.is_transient());
    }
}

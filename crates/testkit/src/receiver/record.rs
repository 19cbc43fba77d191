//! What a receiver has seen, in bounded memory.

use std::collections::HashMap;
use std::fmt;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, Method};
use tokio::time::Instant;

/// The most requests a receiver records, over all paths.
pub const MAX_REQUESTS: usize = 500_000;
/// The most bytes of bodies a receiver records, over all paths.
pub const MAX_BYTES: usize = 512 << 20;

/// One request as it was read.
#[derive(Clone)]
pub struct Recorded {
    /// When its body had been read, on the monotonic clock.
    pub at: Instant,
    /// The same by the wall clock.
    pub wall: SystemTime,
    /// Its method.
    pub method: Method,
    /// Its query string, without `?`.
    pub query: Option<String>,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, byte for byte.
    pub body: Bytes,
    /// The status it was to be answered with (a client may have gone before); `None` if it was to get no answer.
    pub answered: Option<u16>,
}

impl Recorded {
    pub(super) fn new(parts: http::request::Parts, body: Bytes, answered: Option<u16>) -> Self {
        Self {
            at: Instant::now(),
            wall: SystemTime::now(),
            method: parts.method,
            query: parts.uri.query().map(str::to_owned),
            headers: parts.headers,
            body,
            answered,
        }
    }

    /// A header as text; `None` if it is missing or not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The `webhook-id` header, or its older name `svix-id`; empty if there is neither.
    pub fn webhook_id(&self) -> &str {
        self.header("webhook-id")
            .or_else(|| self.header("svix-id"))
            .unwrap_or_default()
    }

    /// Whether it was answered with 2xx.
    pub fn succeeded(&self) -> bool {
        self.answered.is_some_and(|status| (200..300).contains(&status))
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = String::from_utf8_lossy(&self.body[..self.body.len().min(80)]);
        let answered = self
            .answered
            .map_or("nothing".to_owned(), |status| status.to_string());
        let (method, id, length) = (&self.method, self.webhook_id(), self.body.len());
        write!(
            f,
            "{method} webhook-id={id} {length} bytes {start:?} answered with {answered}"
        )
    }
}

#[derive(Debug, Default)]
pub(super) struct Path {
    pub(super) requests: Vec<Recorded>,
    pub(super) peak_in_flight: usize,
    in_flight: usize,
}

impl Path {
    pub(super) fn enter(&mut self) {
        self.in_flight += 1;
        self.peak_in_flight = self.peak_in_flight.max(self.in_flight);
    }

    pub(super) fn leave(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }
}

#[derive(Debug, Default)]
pub(super) struct Recording {
    paths: HashMap<String, Path>,
    recorded: usize,
    bytes: usize,
    pub(super) unrecorded: usize,
}

impl Recording {
    pub(super) fn path(&self, path: &str) -> Option<&Path> {
        self.paths.get(path)
    }

    pub(super) fn path_mut(&mut self, path: &str) -> &mut Path {
        self.paths.entry(path.to_owned()).or_default()
    }

    pub(super) fn add(&mut self, path: &str, request: Recorded) {
        if self.recorded == MAX_REQUESTS || self.bytes + request.body.len() > MAX_BYTES {
            self.unrecorded += 1;
            return;
        }
        self.recorded += 1;
        self.bytes += request.body.len();
        self.path_mut(path).requests.push(request);
    }

    pub(super) fn total(&self) -> usize {
        self.recorded + self.unrecorded
    }

    pub(super) fn clear(&mut self) {
        for path in self.paths.values_mut() {
            path.requests.clear();
            path.peak_in_flight = path.in_flight;
        }
        (self.recorded, self.bytes, self.unrecorded) = (0, 0, 0);
    }
}

//! What the generator is to do.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use http_body_util::Full;
use serde::{Deserialize, Serialize};

use crate::payload::{Stamp, Template};

/// Event types that Postrider's endpoints subscribe to.
pub(crate) const EVENT_TYPES: usize = 10;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Gateways, taken in turn by the connections.
    pub(crate) targets: Vec<SocketAddr>,
    pub(crate) route: Route,
    pub(crate) connections: usize,
    pub(crate) mode: Mode,
    /// How long to send; closed loops also end at `messages`.
    pub(crate) seconds: f64,
    /// Messages at most.
    pub(crate) messages: Option<u64>,
    /// Number of the first message.
    pub(crate) first_number: u64,
    /// Bytes of the payload.
    pub(crate) bytes: usize,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Mode {
    Closed,
    Open { per_second: f64 },
}

/// How a message is put into a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Route {
    /// `POST /`, the payload alone.
    Floor,
    /// The public API, with an idempotency key for every message.
    Postrider {
        /// Applications, taken in turn.
        apps: Vec<String>,
        /// API key.
        key: String,
        /// Whether messages take the event types in turn after the applications, or all have the first.
        every_type: bool,
        /// Makes the idempotency keys of this run its own.
        run: String,
    },
}

/// The name of an event type.
pub(crate) fn event_type(index: usize) -> String {
    format!("bench.{index}")
}

/// Everything about the requests that can be made beforehand.
pub(crate) struct Requests {
    templates: Vec<Template>,
    uris: Vec<Uri>,
    headers: HeaderMap,
    run: Option<String>,
}

impl Requests {
    pub(crate) fn new(plan: &Plan) -> Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(HOST, HeaderValue::from_static("bench.test"));
        match &plan.route {
            Route::Floor => Ok(Self {
                templates: vec![Template::new("", plan.bytes, "")],
                uris: vec![Uri::from_static("/")],
                headers,
                run: None,
            }),
            Route::Postrider {
                apps,
                key,
                every_type,
                run,
            } => {
                let mut bearer = HeaderValue::try_from(format!("Bearer {key}")).context("not an API key")?;
                bearer.set_sensitive(true);
                headers.insert(AUTHORIZATION, bearer);
                let types = if *every_type { EVENT_TYPES } else { 1 };
                let template = |index| {
                    let before = format!(r#"{{"eventType":"{}","payload":"#, event_type(index));
                    Template::new(&before, plan.bytes, "}")
                };
                let uri = |app: &String| format!("/api/v1/app/{app}/msg").parse::<Uri>();
                Ok(Self {
                    templates: (0..types).map(template).collect(),
                    uris: apps.iter().map(uri).collect::<Result<_, _>>()?,
                    headers,
                    run: Some(run.clone()),
                })
            }
        }
    }

    /// The request with this message. The applications take turns first, then the event types.
    pub(crate) fn request(&self, stamp: Stamp) -> Result<Request<Full<Bytes>>> {
        let number = usize::try_from(stamp.number)?;
        let template = &self.templates[number / self.uris.len() % self.templates.len()];
        let mut request = Request::new(Full::new(template.stamped(stamp)));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.uris[number % self.uris.len()].clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(run) = &self.run {
            let key = HeaderValue::try_from(format!("{run}-{number}"))?;
            request
                .headers_mut()
                .insert(HeaderName::from_static("idempotency-key"), key);
        }
        Ok(request)
    }
}

//! What the gateway counts. No tenant and no endpoint is a label.

use postrider_telemetry::{Doc, Kind};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// A request's labels, as OpenTelemetry's conventions for HTTP servers name them. The scheme is left out: a listener
/// has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    http_request_method: &'static str,
    /// The template, not the path.
    http_route: String,
    http_response_status_code: u16,
}

/// The conventions' buckets for durations, and two below them.
const SECONDS: [f64; 16] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    code: &'static str,
}

/// The gateway's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Histogram, fn() -> Histogram>,
    accepted: Counter,
    deliveries: Counter,
    refused: Family<RefusalLabels, Counter>,
    limits_failures: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            accepted: Counter::default(),
            deliveries: Counter::default(),
            refused: Family::default(),
            limits_failures: Counter::default(),
        }
    }
}

/// What [`Metrics::register`] adds, as it is exported.
pub const DOCS: &[Doc] = &[
    Doc::new(
        "http_server_request_duration_seconds",
        Kind::Histogram,
        "seconds",
        "Time to answer a request, by `http_request_method`, `http_route` (the template) and `http_response_status_code`",
    ),
    Doc::new(
        "postrider_gateway_messages_accepted_total",
        Kind::Counter,
        "1",
        "Messages accepted",
    ),
    Doc::new(
        "postrider_gateway_deliveries_made_total",
        Kind::Counter,
        "1",
        "Deliveries of accepted messages",
    ),
    Doc::new(
        "postrider_gateway_messages_refused_total",
        Kind::Counter,
        "1",
        "Requests to accept a message that were refused after the first checks, by the error's `code`",
    ),
    Doc::new(
        "postrider_gateway_limits_failures_total",
        Kind::Counter,
        "1",
        "Calls to the shared limits that failed; requests went on without them",
    ),
];

impl Metrics {
    /// Adds the metrics to a registry without a prefix: what OpenTelemetry names by its name, the rest under
    /// `postrider_gateway_`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "http_server_request_duration",
            "Time to answer a request",
            Unit::Seconds,
            self.requests.clone(),
        );
        let registry = registry.sub_registry_with_prefix("postrider_gateway");
        registry.register("messages_accepted", "Messages accepted", self.accepted.clone());
        registry.register(
            "deliveries_made",
            "Deliveries of accepted messages",
            self.deliveries.clone(),
        );
        registry.register(
            "messages_refused",
            "Requests to accept a message that were refused after the first checks, by error code",
            self.refused.clone(),
        );
        registry.register(
            "limits_failures",
            "Calls to the shared limits that failed; requests went on without them",
            self.limits_failures.clone(),
        );
    }

    pub(crate) fn answered(&self, method: &http::Method, route: &str, status: u16, seconds: f64) {
        let labels = RequestLabels {
            http_request_method: known(method),
            http_route: route.to_owned(),
            http_response_status_code: status,
        };
        self.requests.get_or_create(&labels).observe(seconds);
    }

    pub(crate) fn accepted(&self, messages: usize, deliveries: usize) {
        self.accepted.inc_by(u64::try_from(messages).unwrap_or(0));
        self.deliveries.inc_by(u64::try_from(deliveries).unwrap_or(0));
    }

    pub(crate) fn refused(&self, code: &'static str) {
        self.refused.get_or_create(&RefusalLabels { code }).inc();
    }

    pub(crate) fn limits_failed(&self) {
        self.limits_failures.inc();
    }
}

/// Clients may invent methods; the conventions have one word for all of those.
fn known(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}

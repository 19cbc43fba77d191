//! What the gateway counts. No tenant and no endpoint is a label.

use postrider_telemetry::{Doc, Kind};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A request's labels. The route is the template, not the path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    code: &'static str,
}

/// The gateway's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histogram,
    accepted: Counter,
    deliveries: Counter,
    refused: Family<RefusalLabels, Counter>,
    limits_failures: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            // 0.25 ms to 8 s.
            request_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
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
        "postrider_gateway_requests_total",
        Kind::Counter,
        "1",
        "Requests answered, by `method`, `route` (its template) and `status`",
    ),
    Doc::new(
        "postrider_gateway_request_seconds",
        Kind::Histogram,
        "seconds",
        "Time to answer a request",
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
        "Requests to accept a message that were refused, by the error's `code`",
    ),
    Doc::new(
        "postrider_gateway_limits_failures_total",
        Kind::Counter,
        "1",
        "Calls to the shared limits that failed; requests went on without them",
    ),
];

impl Metrics {
    /// Adds the metrics to a registry, under `gateway_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("gateway");
        registry.register("requests", "Requests answered", self.requests.clone());
        registry.register(
            "request_seconds",
            "Time to answer a request",
            self.request_seconds.clone(),
        );
        registry.register("messages_accepted", "Messages accepted", self.accepted.clone());
        registry.register(
            "deliveries_made",
            "Deliveries of accepted messages",
            self.deliveries.clone(),
        );
        registry.register(
            "messages_refused",
            "Requests to accept a message that were refused, by error code",
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
            method: method.to_string(),
            route: route.to_owned(),
            status,
        };
        self.requests.get_or_create(&labels).inc();
        self.request_seconds.observe(seconds);
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

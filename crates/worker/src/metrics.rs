//! What the worker counts. No tenant and no endpoint is a label.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use postrider_model::{AttemptClass, DeferReason};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

/// The worker's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    attempts: Family<OutcomeLabels, Counter>,
    attempt_seconds: Histogram,
    end_to_end_seconds: Histogram,
    in_flight: Gauge,
    queued: Gauge,
    deferred: Family<ReasonLabels, Counter>,
    our_failures: Family<StageLabels, Counter>,
    duplicates_suppressed: Counter,
    breakers_opened: Counter,
    limits_failures: Counter<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            attempts: Family::default(),
            // 1 ms to 33 s: an attempt's deadline is at most 30 s.
            attempt_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            // 1 ms to 36 h: the retry schedule is 28 h.
            end_to_end_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 14)),
            in_flight: Gauge::default(),
            queued: Gauge::default(),
            deferred: Family::default(),
            our_failures: Family::default(),
            duplicates_suppressed: Counter::default(),
            breakers_opened: Counter::default(),
            limits_failures: Counter::default(),
        }
    }
}

impl Metrics {
    /// Adds the metrics to a registry, under `worker_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("worker");
        registry.register(
            "attempts",
            "Attempts by outcome: status class or failure",
            self.attempts.clone(),
        );
        registry.register_with_unit(
            "attempt_duration",
            "Time from the request to the end of the response",
            Unit::Seconds,
            self.attempt_seconds.clone(),
        );
        registry.register_with_unit(
            "end_to_end",
            "Time from acceptance to the first 2xx",
            Unit::Seconds,
            self.end_to_end_seconds.clone(),
        );
        registry.register("in_flight", "Attempts in flight", self.in_flight.clone());
        registry.register("queued", "Deliveries waiting for their turn", self.queued.clone());
        registry.register(
            "deferred",
            "Deliveries deferred to the store, by reason",
            self.deferred.clone(),
        );
        registry.register(
            "our_failures",
            "Deliveries not tried through a failure of ours, by stage",
            self.our_failures.clone(),
        );
        registry.register(
            "duplicates_suppressed",
            "Deliveries not tried again because of a done mark",
            self.duplicates_suppressed.clone(),
        );
        registry.register(
            "breakers_opened",
            "Breakers that opened",
            self.breakers_opened.clone(),
        );
        registry.register(
            "limits_failures",
            "Trips to the limits that failed",
            self.limits_failures.clone(),
        );
    }

    pub(crate) fn attempt(&self, class: AttemptClass, status: u16, took: Duration) {
        let outcome = match (class, status / 100) {
            (AttemptClass::Success | AttemptClass::Status, 1) => "1xx",
            (AttemptClass::Success | AttemptClass::Status, 2) => "2xx",
            (AttemptClass::Success | AttemptClass::Status, 3) => "3xx",
            (AttemptClass::Success | AttemptClass::Status, 4) => "4xx",
            (AttemptClass::Success | AttemptClass::Status, _) => "5xx",
            (AttemptClass::Timeout, _) => "timeout",
            (AttemptClass::Connect, _) => "connect",
            (AttemptClass::Tls, _) => "tls",
            (AttemptClass::Dns, _) => "dns",
            (AttemptClass::Blocked, _) => "blocked",
            (AttemptClass::Http, _) => "http",
        };
        self.attempts.get_or_create(&OutcomeLabels { outcome }).inc();
        self.attempt_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn end_to_end(&self, took: Duration) {
        self.end_to_end_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn load(&self, in_flight: usize, queued: usize) {
        self.in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        self.queued.set(i64::try_from(queued).unwrap_or(i64::MAX));
    }

    pub(crate) fn deferred(&self, reason: DeferReason) {
        self.deferred
            .get_or_create(&ReasonLabels {
                reason: reason.as_str(),
            })
            .inc();
    }

    pub(crate) fn our_failure(&self, stage: &'static str) {
        self.our_failures.get_or_create(&StageLabels { stage }).inc();
    }

    pub(crate) fn duplicate_suppressed(&self) {
        self.duplicates_suppressed.inc();
    }

    pub(crate) fn breaker_opened(&self) {
        self.breakers_opened.inc();
    }

    pub(crate) fn limits_failure(&self) {
        self.limits_failures.inc();
    }
}

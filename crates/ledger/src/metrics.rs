//! What the ledger counts. No tenant and no endpoint is a label.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use postrider_model::DeferReason;
use postrider_store::ReasonCount;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// The ledger's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    batch_records: Histogram,
    batch_seconds: Histogram,
    journal_lag: Gauge<f64, AtomicU64>,
    stale: Counter,
    released: Counter,
    lateness_seconds: Histogram,
    waiting: Family<ReasonLabels, Gauge>,
    ready_age: Gauge<f64, AtomicU64>,
    strays: Counter,
    parked: Family<KindLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            batch_records: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            // 0.25 ms to 8 s.
            batch_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            journal_lag: Gauge::default(),
            stale: Counter::default(),
            released: Counter::default(),
            // 1 ms to 17 min.
            lateness_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 11)),
            waiting: Family::default(),
            ready_age: Gauge::default(),
            strays: Counter::default(),
            parked: Family::default(),
        }
    }
}

impl Metrics {
    /// Adds the metrics to a registry, under `ledger_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ledger");
        registry.register(
            "recorder_batch_records",
            "Records in a batch",
            self.batch_records.clone(),
        );
        registry.register_with_unit(
            "recorder_batch_duration",
            "Time to record a batch",
            Unit::Seconds,
            self.batch_seconds.clone(),
        );
        registry.register_with_unit(
            "journal_lag",
            "Age of the oldest record of the last batch when it was recorded",
            Unit::Seconds,
            self.journal_lag.clone(),
        );
        registry.register(
            "recorder_stale",
            "Outcomes of a run that was no longer current",
            self.stale.clone(),
        );
        registry.register(
            "scheduler_released",
            "Deliveries handed back to the broker",
            self.released.clone(),
        );
        registry.register_with_unit(
            "scheduler_lateness",
            "How long after its due time the longest waiting endpoint of a round was looked at",
            Unit::Seconds,
            self.lateness_seconds.clone(),
        );
        registry.register("waiting", "Deliveries that wait, by reason", self.waiting.clone());
        registry.register_with_unit(
            "ready_age",
            "How long the oldest due delivery has been due",
            Unit::Seconds,
            self.ready_age.clone(),
        );
        registry.register(
            "strays",
            "Frames taken back from the stray queue",
            self.strays.clone(),
        );
        registry.register(
            "parked",
            "What could not be handled, by kind",
            self.parked.clone(),
        );
    }

    pub(crate) fn batch(&self, records: usize, took: Duration, lag: Duration) {
        self.batch_records
            .observe(f64::from(u32::try_from(records).unwrap_or(u32::MAX)));
        self.batch_seconds.observe(took.as_secs_f64());
        self.journal_lag.set(lag.as_secs_f64());
    }

    pub(crate) fn stale(&self, outcomes: usize) {
        self.stale.inc_by(u64::try_from(outcomes).unwrap_or(u64::MAX));
    }

    pub(crate) fn released(&self, jobs: usize) {
        self.released.inc_by(u64::try_from(jobs).unwrap_or(u64::MAX));
    }

    pub(crate) fn lateness(&self, late: Duration) {
        self.lateness_seconds.observe(late.as_secs_f64());
    }

    pub(crate) fn waiting(&self, counts: &[ReasonCount], oldest: Duration) {
        for reason in DeferReason::ALL {
            let count = counts
                .iter()
                .find(|count| count.reason == reason)
                .map_or(0, |count| count.count);
            let gauge = self.waiting.get_or_create(&ReasonLabels {
                reason: reason.as_str(),
            });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.ready_age.set(oldest.as_secs_f64());
    }

    pub(crate) fn stray(&self) {
        self.strays.inc();
    }

    pub(crate) fn parked(&self, kind: &'static str) {
        self.parked.get_or_create(&KindLabels { kind }).inc();
    }
}

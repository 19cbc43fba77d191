//! Numbers that go between the processes of the bench, and into its report.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest latency that is told apart, in nanoseconds: 10 minutes.
const LATENCY_MAX_NS: u64 = 600_000_000_000;

/// Where latencies are collected, in nanoseconds, to three digits.
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        // The bounds are constants that the library takes.
        let histogram = Histogram::new_with_bounds(1_000, LATENCY_MAX_NS, 3);
        Self(histogram.unwrap_or_else(|error| unreachable!("constant bounds: {error}")))
    }

    pub(crate) fn record(&mut self, nanos: u64) {
        self.0.saturating_record(nanos);
    }

    pub(crate) fn summary(&self) -> Quantiles {
        let at = |quantile: f64| millis(self.0.value_at_quantile(quantile));
        Quantiles {
            count: self.0.len(),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: millis(self.0.max()),
        }
    }
}

fn millis(nanos: u64) -> f64 {
    std::time::Duration::from_nanos(nanos).as_secs_f64() * 1_000.0
}

/// What is told of a latency.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

/// What the generator says at its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Generated {
    /// When it began and when its last answer came, by [`crate::clock::now_ns`].
    pub(crate) started_ns: u64,
    pub(crate) ended_ns: u64,
    /// Requests answered with 2xx.
    pub(crate) accepted: u64,
    /// Other answers by status; 0 stands for connections that broke.
    pub(crate) refused: BTreeMap<u16, u64>,
    /// The body of the first of them.
    pub(crate) first_refusal: Option<String>,
    /// From the intended time of sending to the answer.
    pub(crate) accept: Quantiles,
    /// CPU-seconds that it used itself.
    pub(crate) cpu_s: f64,
}

/// What the receiver saw of one group of endpoints.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Received {
    /// Requests, whatever was answered.
    pub(crate) requests: u64,
    /// Different deliveries that were answered with 2xx.
    pub(crate) delivered: u64,
    /// Deliveries answered with 2xx more than once.
    pub(crate) duplicates: u64,
    /// Requests without a signature.
    pub(crate) unsigned: u64,
    /// When the last new delivery came.
    pub(crate) last_ns: u64,
    /// From the intended time of sending to the arrival of the first successful request.
    pub(crate) latency: Quantiles,
}

/// The middle of some figures, and their ends.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// None of no figures.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => return None,
            odd if odd % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Some(Self {
            min: *sorted.first()?,
            median,
            max: *sorted.last()?,
        })
    }
}

/// An integer as a figure; exact below 2^53.
pub(crate) fn figure(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    let figure = count as f64;
    figure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_between() {
        let spread = Spread::of([4.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.0, 4.0));
        assert_eq!(Spread::of([1.0, 3.0]).unwrap().median, 2.0);
        assert!(Spread::of([]).is_none());
    }

    #[test]
    fn quantiles_are_in_milliseconds() {
        let mut latencies = Latencies::new();
        for millis in 1..=100 {
            latencies.record(millis * 1_000_000);
        }
        let summary = latencies.summary();
        assert!((summary.p50_ms - 50.0).abs() < 0.5, "{summary:?}");
        assert!((summary.p99_ms - 99.0).abs() < 0.5, "{summary:?}");
        assert_eq!(summary.count, 100);
    }
}

//! The list of exported metrics: what registration reads, what the documentation prints.

use std::fmt::Write as _;

/// What a metric measures with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the process ends.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of observations in buckets.
    Histogram,
    /// Facts as labels; the value is 1.
    Info,
}

impl Kind {
    /// The name in the exposition format.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// One exported metric.
#[derive(Debug, Clone, Copy)]
pub struct Doc {
    /// The name as dashboards write it, with the unit's and the counter's suffix.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The unit of its values; `1` for counts.
    pub unit: &'static str,
    /// What it means, in one sentence without its full stop.
    pub meaning: &'static str,
}

impl Doc {
    /// A metric of this name, type, unit and meaning.
    pub const fn new(name: &'static str, kind: Kind, unit: &'static str, meaning: &'static str) -> Self {
        Self {
            name,
            kind,
            unit,
            meaning,
        }
    }
}

const fn doc(name: &'static str, kind: Kind, unit: &'static str, meaning: &'static str) -> Doc {
    Doc::new(name, kind, unit, meaning)
}

use Kind::{Counter, Gauge, Histogram, Info};

/// Every metric that [`crate::Metrics`] exports.
pub const DOCS: &[Doc] = &[
    doc("postrider_build_info", Info, "1", "The version that runs"),
    doc(
        "postrider_duplicates_suppressed_total",
        Counter,
        "1",
        "Repeats that were recognised and not processed again, by what recognised them",
    ),
    doc(
        "postrider_attempts_total",
        Counter,
        "1",
        "Attempts to deliver, by what they met",
    ),
    doc(
        "postrider_attempt_duration_seconds",
        Histogram,
        "seconds",
        "Time from the start of an attempt to its end",
    ),
    doc(
        "postrider_end_to_end_seconds",
        Histogram,
        "seconds",
        "Time from acceptance of a message to its successful delivery, waiting and retries included",
    ),
    doc(
        "postrider_attempts_in_flight",
        Gauge,
        "1",
        "Attempts under way in this worker",
    ),
    doc(
        "postrider_deliveries_queued",
        Gauge,
        "1",
        "Deliveries that this worker holds and has not started",
    ),
    doc(
        "postrider_deliveries_held",
        Gauge,
        "1",
        "Deliveries of the envelopes that this worker has not acknowledged: started, waiting, and ended beside others that have not; `delivery.max_held` at most",
    ),
    doc(
        "postrider_deliveries_deferred_total",
        Counter,
        "1",
        "Deliveries that a worker handed to the store to wait there, by reason",
    ),
    doc(
        "postrider_our_failures_total",
        Counter,
        "1",
        "Failures of Postrider itself or its services, which count as no attempt, by where they happened",
    ),
    doc(
        "postrider_breaker_opened_total",
        Counter,
        "1",
        "Times that a closed breaker opened; a probe that failed keeps it open and does not count",
    ),
    doc(
        "postrider_breakers_open",
        Gauge,
        "1",
        "Endpoints whose breaker is open, over all processes, as a ledger counts them; the same in every ledger",
    ),
    doc(
        "postrider_broker_up",
        Gauge,
        "1",
        "1 while the broker takes what this process publishes",
    ),
    doc(
        "postrider_store_up",
        Gauge,
        "1",
        "1 while the store answers this process",
    ),
    doc(
        "postrider_limits_fallback_total",
        Counter,
        "1",
        "Questions to the shared limits that this process answered alone because Redis did not, by what was asked",
    ),
    doc(
        "postrider_limits_degraded",
        Gauge,
        "1",
        "1 while the shared limits are out of reach",
    ),
    doc(
        "postrider_publish_confirm_seconds",
        Histogram,
        "seconds",
        "Time from publishing a frame to the broker's confirm",
    ),
    doc(
        "postrider_publish_failures_total",
        Counter,
        "1",
        "Frames that the broker did not confirm, by reason",
    ),
    doc(
        "postrider_frames_stray_total",
        Counter,
        "1",
        "Frames that were dead-lettered or had no queue and were taken back",
    ),
    doc(
        "postrider_envelope_deliveries",
        Histogram,
        "1",
        "Deliveries or journal records in a published frame",
    ),
    doc(
        "postrider_journal_lag_seconds",
        Gauge,
        "seconds",
        "Age of the journal's oldest record that is not written down, at the worst of the last second; 0 where another ledger has the journal",
    ),
    doc(
        "postrider_journal_held_frames",
        Gauge,
        "1",
        "Frames of the journal with something that the store neither records nor parks; the broker keeps them",
    ),
    doc(
        "postrider_orphans_cancelled_total",
        Counter,
        "1",
        "Deliveries cancelled because their message was not recorded within a day",
    ),
    doc(
        "postrider_ready_age_seconds",
        Gauge,
        "seconds",
        "How long the oldest ready delivery has been ready: due, and no limit, pause, open breaker or sequence keeps it back",
    ),
    doc(
        "postrider_deliveries_waiting",
        Gauge,
        "1",
        "Deliveries that wait in the store, by reason",
    ),
    doc(
        "postrider_scheduler_lateness_seconds",
        Histogram,
        "seconds",
        "How long after its due time the oldest endpoint of a round was looked at",
    ),
    doc(
        "postrider_scheduler_released_total",
        Counter,
        "1",
        "Deliveries that the scheduler handed to the broker",
    ),
    doc(
        "postrider_recorder_batch_records",
        Histogram,
        "1",
        "Journal records written in one batch",
    ),
    doc(
        "postrider_recorder_batch_seconds",
        Histogram,
        "seconds",
        "Time to write one batch of journal records",
    ),
    doc(
        "postrider_parked_total",
        Counter,
        "1",
        "What was set aside because it cannot be handled, by kind; each needs an operator",
    ),
    doc(
        "postrider_parked_items",
        Gauge,
        "1",
        "What is set aside now and needs an operator, as a ledger counts it; the same in every ledger",
    ),
    doc(
        "postrider_queue_frames",
        Gauge,
        "1",
        "Frames that are ready in a queue of the broker, all shards together, as a ledger sees them; the same in every \
         ledger. Embedded, those that are being handled count too",
    ),
    doc(
        "postrider_reconnects_total",
        Counter,
        "1",
        "Connections to the broker that had to be made again, by what they are for; and returns of Redis and of the store \
         after they were away",
    ),
    doc(
        "postrider_store_connections",
        Gauge,
        "1",
        "Connections to the store by pool, in use and idle, and calls that are without one (`waiting`)",
    ),
    doc(
        "postrider_receiver_connections",
        Gauge,
        "1",
        "Connections to receivers that are open in this worker, at work or idle",
    ),
    doc(
        "postrider_receiver_connections_opened_total",
        Counter,
        "1",
        "Connections to receivers that this worker opened; far fewer than attempts when they are reused",
    ),
    doc(
        "postrider_cache_lookups_total",
        Counter,
        "1",
        "Looks into a cache, by cache and result",
    ),
    doc(
        "postrider_config_reloads_total",
        Counter,
        "1",
        "Times that an application's configuration was read from the store again",
    ),
    doc(
        "postrider_trace_spans_total",
        Counter,
        "1",
        "Finished spans, by what became of them; all zero while traces are off",
    ),
];

/// Metrics as a Markdown table.
pub fn docs_table(docs: &[Doc]) -> String {
    let mut table = String::from("| Metric | Type | Unit | Meaning |\n|---|---|---|---|\n");
    for doc in docs {
        // Writing to a string does not fail.
        let _ = writeln!(
            table,
            "| `{}` | {} | {} | {} |",
            doc.name,
            doc.kind.as_str(),
            doc.unit,
            doc.meaning
        );
    }
    table
}

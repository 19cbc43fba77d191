//! The metrics of a process, whatever roles it runs, and their one registry.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use postrider_model::AttemptClass;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::family::{By, ByTwo, Two};
use crate::labels::{
    Cache, CacheResult, Duplicate, Fallback, Label, Outcome, Parked, Pool, PoolState, PublishFailure,
    QueueKind, Service, SpanFate, Stage, WaitReason,
};
use crate::registrar::Registrar;

/// The `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One call or attempt, to the longest deadline there is.
const CALL_SECONDS: [f64; 15] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0,
];

/// From at once to the end of the retry schedule.
const WAIT_SECONDS: [f64; 16] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0,
];

type SecondsGauge = Gauge<f64, AtomicU64>;

/// Every metric of the process. Made once and shared.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    duplicates: By<Duplicate, Counter>,
    attempts: By<Outcome, Counter>,
    attempt_duration: Histogram,
    end_to_end: Histogram,
    in_flight: Gauge,
    queued: Gauge,
    held: Gauge,
    deferred: By<WaitReason, Counter>,
    our_failures: By<Stage, Counter>,
    breaker_opened: Counter,
    breakers_open: Gauge,
    broker_up: Gauge,
    store_up: Gauge,
    limits_fallback: By<Fallback, Counter>,
    limits_degraded: Gauge,
    publish_confirm: Histogram,
    publish_failures: By<PublishFailure, Counter>,
    stray: Counter,
    envelope_deliveries: Histogram,
    journal_lag: SecondsGauge,
    journal_held: Gauge,
    orphans_cancelled: Counter,
    ready_age: SecondsGauge,
    waiting: By<WaitReason, Gauge>,
    scheduler_lateness: Histogram,
    scheduler_released: Counter,
    recorder_batch_records: Histogram,
    recorder_batch: Histogram,
    parked: By<Parked, Counter>,
    parked_now: Gauge,
    queue_frames: By<QueueKind, Gauge>,
    reconnects: By<Service, Counter>,
    store_connections: ByTwo<Pool, PoolState, Gauge>,
    receiver_connections: Gauge,
    receiver_connections_opened: Counter,
    cache: ByTwo<Cache, CacheResult, Counter>,
    config_reloads: Counter,
    spans: By<SpanFate, Counter>,
}

impl Metrics {
    /// A registry of its own with every metric at zero.
    pub fn new() -> Arc<Self> {
        Self::with(|_| {})
    }

    /// As [`Metrics::new`], with what `register` adds to a registry without a prefix.
    pub fn with(register: impl FnOnce(&mut Registry)) -> Arc<Self> {
        let mut registry = Registry::default();
        let mut new = Registrar::new(&mut registry);
        new.register(
            "postrider_build_info",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let mut metrics = Self {
            duplicates: new.counters("postrider_duplicates_suppressed_total"),
            attempts: new.counters("postrider_attempts_total"),
            attempt_duration: new.histogram("postrider_attempt_duration_seconds", CALL_SECONDS),
            end_to_end: new.histogram("postrider_end_to_end_seconds", WAIT_SECONDS),
            in_flight: new.one("postrider_attempts_in_flight"),
            queued: new.one("postrider_deliveries_queued"),
            held: new.one("postrider_deliveries_held"),
            deferred: new.counters("postrider_deliveries_deferred_total"),
            our_failures: new.counters("postrider_our_failures_total"),
            breaker_opened: new.one("postrider_breaker_opened_total"),
            breakers_open: new.one("postrider_breakers_open"),
            broker_up: new.one("postrider_broker_up"),
            store_up: new.one("postrider_store_up"),
            limits_fallback: new.counters("postrider_limits_fallback_total"),
            limits_degraded: new.one("postrider_limits_degraded"),
            publish_confirm: new.histogram("postrider_publish_confirm_seconds", CALL_SECONDS),
            publish_failures: new.counters("postrider_publish_failures_total"),
            stray: new.one("postrider_frames_stray_total"),
            envelope_deliveries: new.histogram("postrider_envelope_deliveries", powers_of_two()),
            journal_lag: new.one("postrider_journal_lag_seconds"),
            journal_held: new.one("postrider_journal_held_frames"),
            orphans_cancelled: new.one("postrider_orphans_cancelled_total"),
            ready_age: new.one("postrider_ready_age_seconds"),
            waiting: By::new(&new.one("postrider_deliveries_waiting")),
            scheduler_lateness: new.histogram("postrider_scheduler_lateness_seconds", WAIT_SECONDS),
            scheduler_released: new.one("postrider_scheduler_released_total"),
            recorder_batch_records: new.histogram("postrider_recorder_batch_records", powers_of_two()),
            recorder_batch: new.histogram("postrider_recorder_batch_seconds", CALL_SECONDS),
            parked: new.counters("postrider_parked_total"),
            parked_now: new.one("postrider_parked_items"),
            queue_frames: By::new(&new.one("postrider_queue_frames")),
            reconnects: new.counters("postrider_reconnects_total"),
            store_connections: ByTwo::new(
                &new.one::<Family<Two<Pool, PoolState>, Gauge>>("postrider_store_connections"),
            ),
            receiver_connections: new.one("postrider_receiver_connections"),
            receiver_connections_opened: new.one("postrider_receiver_connections_opened_total"),
            cache: ByTwo::new(
                &new.one::<Family<Two<Cache, CacheResult>, Counter>>("postrider_cache_lookups_total"),
            ),
            config_reloads: new.one("postrider_config_reloads_total"),
            spans: new.counters("postrider_trace_spans_total"),
            registry: Registry::default(),
        };
        register(&mut registry);
        metrics.registry = registry;
        Arc::new(metrics)
    }

    /// Everything in the OpenMetrics text format, to be sent as [`CONTENT_TYPE`].
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(32 * 1024);
        // Writing to a string does not fail, and the metrics bring no errors of their own.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// A repeat was recognised.
    pub fn duplicate(&self, kind: Duplicate) {
        self.duplicates.get(kind).inc();
    }

    /// An attempt ended; `status` is 0 without a response.
    pub fn attempt(&self, class: AttemptClass, status: u16, duration: Duration) {
        self.attempts.get(Outcome::of(class, status)).inc();
        self.attempt_duration.observe(duration.as_secs_f64());
    }

    /// A message was delivered so long after its acceptance.
    pub fn end_to_end(&self, duration: Duration) {
        self.end_to_end.observe(duration.as_secs_f64());
    }

    /// What the worker has on its hands.
    pub fn worker_load(&self, in_flight: usize, queued: usize, held: usize) {
        self.in_flight.set(clamp(in_flight));
        self.queued.set(clamp(queued));
        self.held.set(clamp(held));
    }

    /// A delivery goes to the store to wait.
    pub fn deferred(&self, reason: impl Into<WaitReason>) {
        self.deferred.get(reason.into()).inc();
    }

    /// A failure that is nobody's but ours.
    pub fn our_failure(&self, stage: impl Into<Stage>) {
        self.our_failures.get(stage.into()).inc();
    }

    /// An endpoint's breaker opened that was closed before.
    pub fn breaker_opened(&self) {
        self.breaker_opened.inc();
    }

    /// How many breakers are open now, over all processes.
    pub fn breakers_open(&self, open: u64) {
        self.breakers_open.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// Whether the broker takes frames now.
    pub fn broker_up(&self, up: bool) {
        self.broker_up.set(i64::from(up));
    }

    /// Whether the store answers now.
    pub fn store_up(&self, up: bool) {
        self.store_up.set(i64::from(up));
    }

    /// The shared limits did not answer; this process decided alone.
    pub fn limits_fallback(&self, what: impl Into<Fallback>) {
        self.limits_fallback.get(what.into()).inc();
    }

    /// Whether the shared limits are out of reach now.
    pub fn limits_degraded(&self, degraded: bool) {
        self.limits_degraded.set(i64::from(degraded));
    }

    /// The broker confirmed a frame of so many deliveries or records.
    pub fn published(&self, items: usize, confirm: Duration) {
        self.envelope_deliveries.observe(count(items));
        self.publish_confirm.observe(confirm.as_secs_f64());
    }

    /// The broker did not confirm a frame.
    pub fn publish_failed(&self, reason: impl Into<PublishFailure>) {
        self.publish_failures.get(reason.into()).inc();
    }

    /// A frame was found in the stray queue.
    pub fn stray(&self) {
        self.stray.inc();
    }

    /// The age of the journal's oldest record that is not written down.
    pub fn journal_lag(&self, lag: Duration) {
        self.journal_lag.set(lag.as_secs_f64());
    }

    /// So many frames are kept unacknowledged, as nobody takes what is in them.
    pub fn journal_held(&self, frames: usize) {
        self.journal_held.set(i64::try_from(frames).unwrap_or(i64::MAX));
    }

    /// So many deliveries were cancelled for want of a message.
    pub fn orphans_cancelled(&self, deliveries: u64) {
        self.orphans_cancelled.inc_by(deliveries);
    }

    /// What waits in the store by reason, those not given being none, and how long the oldest ready one has been ready.
    pub fn waiting<R: Into<WaitReason>>(
        &self,
        counts: impl IntoIterator<Item = (R, u64)>,
        oldest_due: Duration,
    ) {
        let mut totals = vec![0_i64; WaitReason::ALL.len()];
        for (reason, count) in counts {
            let total = &mut totals[reason.into().index()];
            *total = total.saturating_add(i64::try_from(count).unwrap_or(i64::MAX));
        }
        for (reason, total) in WaitReason::ALL.iter().zip(totals) {
            self.waiting.get(*reason).set(total);
        }
        self.ready_age.set(oldest_due.as_secs_f64());
    }

    /// How late the scheduler came to the oldest endpoint of a round.
    pub fn scheduler_lateness(&self, lateness: Duration) {
        self.scheduler_lateness.observe(lateness.as_secs_f64());
    }

    /// The scheduler handed out so many deliveries.
    pub fn scheduler_released(&self, deliveries: usize) {
        self.scheduler_released
            .inc_by(u64::try_from(deliveries).unwrap_or(u64::MAX));
    }

    /// The recorder wrote a batch.
    pub fn recorder_batch(&self, records: usize, duration: Duration) {
        self.recorder_batch_records.observe(count(records));
        self.recorder_batch.observe(duration.as_secs_f64());
    }

    /// Something was set aside for the operator.
    pub fn parked(&self, kind: impl Into<Parked>) {
        self.parked.get(kind.into()).inc();
    }

    /// So much is set aside now.
    pub fn parked_now(&self, count: u64) {
        self.parked_now.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The broker has so many frames in the queues of a kind.
    pub fn queue_frames(&self, queue: QueueKind, frames: u64) {
        self.queue_frames
            .get(queue)
            .set(i64::try_from(frames).unwrap_or(i64::MAX));
    }

    /// A connection had to be made again.
    pub fn reconnected(&self, service: Service) {
        self.reconnects.get(service).inc();
    }

    /// How much of a pool of connections to the store is used.
    pub fn store_connections(&self, pool: Pool, in_use: usize, idle: usize, waiting: usize) {
        let states = [
            (PoolState::InUse, in_use),
            (PoolState::Idle, idle),
            (PoolState::Waiting, waiting),
        ];
        for (state, count) in states {
            self.store_connections.get(pool, state).set(clamp(count));
        }
    }

    /// Connections to receivers: open now, and opened in all, which never falls.
    pub fn receiver_connections(&self, open: u64, opened: u64) {
        self.receiver_connections
            .set(i64::try_from(open).unwrap_or(i64::MAX));
        let known = self.receiver_connections_opened.get();
        self.receiver_connections_opened
            .inc_by(opened.saturating_sub(known));
    }

    /// A look into a cache.
    pub fn cache(&self, cache: Cache, result: CacheResult) {
        self.cache.get(cache, result).inc();
    }

    /// An application's configuration was read from the store again.
    pub fn config_reloaded(&self) {
        self.config_reloads.inc();
    }

    /// So many finished spans were exported or lost.
    pub fn spans(&self, fate: SpanFate, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.spans.get(fate).inc_by(count);
    }
}

/// 1 to 2048.
fn powers_of_two() -> impl Iterator<Item = f64> {
    exponential_buckets(1.0, 2.0, 12)
}

fn count(items: usize) -> f64 {
    u32::try_from(items).map_or(f64::from(u32::MAX), f64::from)
}

fn clamp(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::docs::{DOCS, Kind};

    /// Name, as dashboards write it, to type and unit, from a rendered text.
    fn exported(text: &str) -> BTreeMap<String, (String, String)> {
        let mut metrics = BTreeMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["#", "TYPE", name, kind] => {
                    let suffix = match *kind {
                        "counter" => "_total",
                        "info" => "_info",
                        _ => "",
                    };
                    metrics.insert(format!("{name}{suffix}"), ((*kind).to_owned(), "1".to_owned()));
                }
                ["#", "UNIT", name, unit] => {
                    let entry = metrics
                        .iter_mut()
                        .find(|(known, _)| known.trim_end_matches("_total") == *name);
                    entry.unwrap().1.1 = (*unit).to_owned();
                }
                _ => {}
            }
        }
        metrics
    }

    #[test]
    fn the_documentation_lists_what_is_exported() {
        let documented: BTreeMap<String, (String, String)> = DOCS
            .iter()
            .map(|doc| {
                (
                    doc.name.to_owned(),
                    (doc.kind.as_str().to_owned(), doc.unit.to_owned()),
                )
            })
            .collect();
        assert_eq!(documented.len(), DOCS.len(), "a name is documented twice");
        let text = Metrics::new().render();
        assert_eq!(exported(&text), documented);
        for doc in DOCS {
            assert!(
                doc.unit != "seconds" || doc.name.ends_with("_seconds"),
                "{}",
                doc.name
            );
            assert_eq!(
                doc.kind == Kind::Counter,
                doc.name.ends_with("_total"),
                "{}",
                doc.name
            );
            assert!(
                !doc.meaning.ends_with('.') && !doc.meaning.is_empty(),
                "{}",
                doc.name
            );
            assert!(
                text.lines().any(|line| line.starts_with(doc.name)),
                "{} has no series",
                doc.name
            );
        }
        assert!(crate::docs_table(DOCS).contains("| `postrider_attempts_total` | counter | 1 |"));
    }

    #[test]
    fn what_is_counted_is_rendered() {
        let metrics = Metrics::new();
        metrics.attempt(AttemptClass::Status, 503, Duration::from_millis(20));
        metrics.deferred("rate");
        metrics.waiting([("retry", 7), ("paused", 2)], Duration::from_millis(1_500));
        metrics.waiting([("retry", 3)], Duration::from_millis(2_500));
        metrics.cache(Cache::Gateway, CacheResult::Miss);
        metrics.worker_load(5, 6, 12);
        metrics.store_connections(Pool::Write, 6, 0, 3);
        metrics.receiver_connections(4, 9);
        metrics.receiver_connections(2, 11);
        metrics.parked("something new");
        metrics.parked_now(4);
        metrics.queue_frames(QueueKind::Retry, 8);
        let text = metrics.render();
        for line in [
            "postrider_attempts_total{outcome=\"5xx\"} 1",
            "postrider_attempts_total{outcome=\"2xx\"} 0",
            "postrider_attempt_duration_seconds_bucket{le=\"0.025\"} 1",
            "postrider_deliveries_deferred_total{reason=\"rate\"} 1",
            "postrider_deliveries_waiting{reason=\"retry\"} 3",
            "postrider_deliveries_waiting{reason=\"paused\"} 0",
            "postrider_ready_age_seconds 2.5",
            "postrider_cache_lookups_total{name=\"gateway_configuration\",result=\"miss\"} 1",
            "postrider_cache_lookups_total{name=\"gateway_configuration\",result=\"hit\"} 0",
            "postrider_attempts_in_flight 5",
            "postrider_deliveries_held 12",
            "postrider_store_connections{pool=\"write\",state=\"waiting\"} 3",
            "postrider_store_connections{pool=\"read\",state=\"idle\"} 0",
            "postrider_receiver_connections 2",
            "postrider_receiver_connections_opened_total 11",
            "postrider_parked_total{kind=\"other\"} 1",
            "postrider_parked_items 4",
            "postrider_queue_frames{queue=\"retry\"} 8",
            "postrider_queue_frames{queue=\"deliver\"} 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
        }
    }

    #[test]
    fn registries_are_apart_and_take_more() {
        let extra: Counter = Counter::default();
        let metrics = Metrics::with(|registry| registry.register("extra", "Extra", extra.clone()));
        extra.inc();
        assert!(metrics.render().contains("\nextra_total 1"));
        assert!(!Metrics::new().render().contains("extra"));
    }
}

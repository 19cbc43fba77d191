//! How metrics get into a registry: by their documented names.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::docs::{DOCS, Kind};
use crate::family::{By, One};
use crate::labels::Label;

const PREFIX: &str = "postrider_";

/// Registers metrics with the help and the unit that [`DOCS`] gives them.
pub(crate) struct Registrar<'a>(&'a mut Registry);

impl<'a> Registrar<'a> {
    /// Into this registry, under Postrider's prefix.
    pub(crate) fn new(registry: &'a mut Registry) -> Self {
        Self(registry.sub_registry_with_prefix(PREFIX.trim_end_matches('_')))
    }

    /// Panics for a name that is not documented: [`crate::Metrics::new`] is called in every test of metrics.
    pub(crate) fn register(&mut self, name: &str, metric: impl Metric) {
        let doc = DOCS
            .iter()
            .find(|doc| doc.name == name)
            .expect("every metric is documented");
        let bare = name.strip_prefix(PREFIX).unwrap_or(name);
        // The exposition format adds these suffixes again.
        let bare = match doc.kind {
            Kind::Counter => bare.trim_end_matches("_total"),
            Kind::Info => bare.trim_end_matches("_info"),
            Kind::Gauge | Kind::Histogram => bare,
        };
        match bare.strip_suffix("_seconds") {
            Some(bare) => self
                .0
                .register_with_unit(bare, doc.meaning, Unit::Seconds, metric),
            None => self.0.register(bare, doc.meaning, metric),
        }
    }

    pub(crate) fn one<M: Metric + Clone + Default>(&mut self, name: &str) -> M {
        let metric = M::default();
        self.register(name, metric.clone());
        metric
    }

    pub(crate) fn counters<L: Label>(&mut self, name: &str) -> By<L, Counter>
    where
        One<L>: EncodeLabelSet,
    {
        By::new(&self.one(name))
    }

    pub(crate) fn histogram(&mut self, name: &str, buckets: impl IntoIterator<Item = f64>) -> Histogram {
        let histogram = Histogram::new(buckets);
        self.register(name, histogram.clone());
        histogram
    }
}

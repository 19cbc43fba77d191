//! Traces of `serve`, off unless a collector is named.

use std::sync::Arc;

use anyhow::Context as _;
use postrider_config::{Config, Roles};
use postrider_telemetry::Metrics;
use postrider_telemetry::trace::{Exporting, TraceSettings, Tracer};

/// What makes spans and what exports them.
pub(crate) fn start(
    config: &Config,
    roles: Roles,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Option<Tracer>, Option<Exporting>)> {
    let traces = &config.traces;
    let Some(endpoint) = &traces.endpoint else {
        return Ok((None, None));
    };
    let system = if config.is_scaled_out() {
        "rabbitmq"
    } else {
        "in_process"
    };
    let settings = TraceSettings {
        endpoint: endpoint.expose().to_owned(),
        sample_ratio: traces.sample_ratio.get(),
        timeout: traces.timeout.get(),
        queue_max: traces.queue_max_spans,
        roles: roles.to_string(),
        messaging_system: system,
    };
    let started = Tracer::start(settings, metrics.clone()).context("traces.endpoint cannot be used")?;
    Ok(Some(started).unzip())
}

//! What lanes publish through: the broker, the limits, and the count of frames and failures.

use std::sync::Arc;

use bytes::Bytes;
use postrider_telemetry::Metrics;
use tokio::time::Instant;

use super::GatherSettings;
use crate::{Broker, PublishError, Queue};

/// Where a lane's frames go.
#[derive(Clone)]
pub(super) struct Outlet {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) settings: GatherSettings,
    pub(super) metrics: Option<Arc<Metrics>>,
}

impl Outlet {
    /// Publishes a frame of so many items, and counts it.
    pub(super) async fn send(&self, queue: Queue, frame: Bytes, items: usize) -> Result<(), PublishError> {
        let started = Instant::now();
        let result = self.broker.publish(queue, frame).await;
        match result {
            Ok(()) => {
                if let Some(metrics) = &self.metrics {
                    metrics.published(items, started.elapsed());
                }
            }
            Err(error) => self.failed(error),
        }
        result
    }

    /// Counts a failure.
    pub(super) fn failed(&self, error: PublishError) {
        if let Some(metrics) = &self.metrics {
            metrics.publish_failed(label(error));
        }
    }
}

/// The failure's word in metrics.
const fn label(error: PublishError) -> &'static str {
    match error {
        PublishError::Down => "down",
        PublishError::Blocked => "blocked",
        PublishError::Timeout(_) => "timeout",
        PublishError::Refused => "refused",
        PublishError::Full => "full",
        PublishError::Lost => "lost",
    }
}

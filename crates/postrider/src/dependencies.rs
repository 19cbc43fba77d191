//! Keeps the gauges of "the broker is up" and "the store is up" true.

use std::time::Duration;

use postrider_broker::Health;

use crate::parts::Parts;

const POLL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Watches both for as long as the process runs.
pub(crate) fn watch(parts: &Parts) {
    let (mut health, metrics) = (parts.broker.health(), parts.metrics.clone());
    tokio::spawn(async move {
        loop {
            metrics.broker_up(*health.borrow_and_update() == Health::Up);
            if health.changed().await.is_err() {
                return;
            }
        }
    });
    let (store, metrics) = (parts.store.clone(), parts.metrics.clone());
    tokio::spawn(async move {
        loop {
            let up = matches!(tokio::time::timeout(PING_TIMEOUT, store.ping()).await, Ok(Ok(())));
            metrics.store_up(up);
            tokio::time::sleep(POLL).await;
        }
    });
}

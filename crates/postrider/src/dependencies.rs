//! Keeps the gauges of what this process leans on true: broker and store up, connections in use.

use std::sync::Arc;
use std::time::Duration;

use postrider_broker::Health;
use postrider_egress::Client;
use postrider_store::{PoolKind, SharedStore};
use postrider_telemetry::Metrics;
use postrider_telemetry::labels::{Pool, Service};

use crate::parts::Parts;

const POLL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Watches broker and store for as long as the process runs.
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
    tokio::spawn(watch_store(parts.store.clone(), parts.metrics.clone()));
}

async fn watch_store(store: SharedStore, metrics: Arc<Metrics>) {
    let mut was_up = true;
    loop {
        let up = matches!(tokio::time::timeout(PING_TIMEOUT, store.ping()).await, Ok(Ok(())));
        metrics.store_up(up);
        if up && !was_up {
            metrics.reconnected(Service::Store);
        }
        was_up = up;
        for pool in store.pools() {
            let name = match pool.kind {
                PoolKind::Read => Pool::Read,
                PoolKind::Write => Pool::Write,
            };
            metrics.store_connections(name, pool.in_use, pool.idle, pool.waiting);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Watches the worker's connections for as long as the process runs.
pub(crate) fn watch_client(client: Client, metrics: Arc<Metrics>) {
    tokio::spawn(async move {
        loop {
            let connections = client.connections();
            metrics.receiver_connections(connections.open, connections.opened);
            tokio::time::sleep(POLL).await;
        }
    });
}

//! A broker for a test.

use std::sync::Arc;
use std::time::Duration;

use postrider_broker::conformance::PATIENCE;
use postrider_broker::{Broker, Health};
use postrider_broker_rabbitmq::{Rabbit, Settings};
use postrider_testkit::services;

/// Settings with queues of the test's own and quick reconnects.
pub(crate) fn settings(url: String, prefix: &str) -> Settings {
    Settings {
        url,
        prefix: services::unique_name(prefix),
        shards: 2,
        reconnect_min: Duration::from_millis(50),
        reconnect_max: Duration::from_millis(500),
        ..Settings::default()
    }
}

/// A broker that takes frames.
pub(crate) async fn up(settings: Settings) -> Arc<dyn Broker> {
    let rabbit = Rabbit::connect(settings, None).expect("good settings");
    becomes(rabbit.as_ref(), Health::Up).await;
    rabbit
}

/// Waits for a state of the publishing side.
pub(crate) async fn becomes(broker: &dyn Broker, wanted: Health) {
    let mut health = broker.health();
    let reached = tokio::time::timeout(PATIENCE, health.wait_for(|health| *health == wanted))
        .await
        .is_ok();
    assert!(
        reached,
        "health is {:?}, not {wanted:?}",
        *broker.health().borrow()
    );
}

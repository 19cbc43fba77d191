//! RabbitMQ against the suite that every broker passes.

mod common;

use postrider_testkit::services;

postrider_broker::conformance_suite!(async {
    let url = services::rabbitmq().await.expect("a RabbitMQ for tests");
    common::up(common::settings(url, "suite")).await
});

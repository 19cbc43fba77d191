//! postrider-broker-rabbitmq (being built).

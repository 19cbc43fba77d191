//! postrider-gateway (being built).

//! postrider-telemetry (being built).

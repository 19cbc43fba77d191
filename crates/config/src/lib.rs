//! postrider-config (being built).

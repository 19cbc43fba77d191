//! postrider-model (being built).

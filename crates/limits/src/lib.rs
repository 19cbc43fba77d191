//! postrider-limits (being built).

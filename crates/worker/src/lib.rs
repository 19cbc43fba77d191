//! postrider-worker (being built).

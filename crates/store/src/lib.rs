//! postrider-store (being built).

//! postrider-store-postgres (being built).

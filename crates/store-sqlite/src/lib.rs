//! postrider-store-sqlite (being built).

//! postrider-secrets (being built).

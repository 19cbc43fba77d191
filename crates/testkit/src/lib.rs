//! postrider-testkit (being built).

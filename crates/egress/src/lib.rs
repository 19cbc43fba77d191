//! postrider-egress (being built).

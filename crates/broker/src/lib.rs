//! postrider-broker (being built).

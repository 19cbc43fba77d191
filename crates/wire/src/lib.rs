//! postrider-wire (being built).

//! postrider-signature (being built).

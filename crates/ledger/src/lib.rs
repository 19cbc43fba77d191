//! postrider-ledger (being built).

//! End-to-end and fault tests (being built).

//! A running ledger over the embedded store and broker.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod journal;
mod release;
mod strays;
mod world;

//! What only the Postgres adapter promises: partitions by day, concurrent migrations and schedulers, and that it
//! outlives its server. Each test has a database of its own.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod configuration;
mod conformance;
mod contention;
mod leases;
mod partitions;
mod reads;
mod repeats;
mod reseal;
mod schema;
mod tasks;
mod world;

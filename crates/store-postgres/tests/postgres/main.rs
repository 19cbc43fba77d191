//! What only the Postgres adapter promises: partitions by day, concurrent migrations and schedulers, and that it
//! outlives its server. Each test has a database of its own.

mod contention;
mod partitions;
mod schema;
mod world;

//! The gateway's API, driven through its router in this process: a real store, the in-process limits, and a broker
//! that records at once what the journal gets and keeps the rest for the test to look at.

mod absent;
mod accept;
mod accept_pressure;
mod accept_repeats;
mod again;
mod authz;
mod config;
mod config_repeats;
mod deliveries;
mod errors;
mod harness;
mod openapi;
mod outage;
mod pages;
mod paths;
mod slow_store;

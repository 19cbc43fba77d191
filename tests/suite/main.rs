//! Postrider as its users run it: whole processes, real services, real clients, and faults.
//!
//! Each test builds a [`stack::Stack`], drives it through its HTTP API with [`api::Api`], receives with the testkit's
//! receiver, and lets an oracle judge. `faults::` tests run one at a time.

mod api;
mod cli;
mod stack;
mod watch;

mod backlog;
mod backup;
mod clocks;
mod configuration;
mod delivery;
mod documents;
mod faults;
mod flood;
mod hostile;
mod isolation;
mod keys;
mod logs;
mod moving;
mod operations;
mod ordered;
mod rate;
mod receivers;
mod sdk;
mod traces;
mod upgrade;

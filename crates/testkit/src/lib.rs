//! What Postrider's tests stand on: real servers, a real receiver, faults, and a judge.
//!
//! * [`services`] starts RabbitMQ, Redis and Postgres, shared ones and private ones that a test may break;
//! * [`receiver`] is an HTTP server that records what it gets and answers as told;
//! * [`name_server`] answers about names, differently from one question to the next if told so;
//! * [`collector`] takes spans as an OpenTelemetry collector does;
//! * [`proxy`] sits before a server and breaks the network on demand;
//! * [`process`] runs the real `postrider` binary;
//! * [`oracle`] remembers what was acknowledged and judges what arrived;
//! * [`wait`] waits for a state, level-triggered and bounded, and says what it last saw.
//!
//! Nothing here outlives its test: every private child is killed on drop and, on Linux, by the kernel when the
//! test process dies. Every recording and every wait has a limit.

#[cfg(feature = "harness")]
pub mod collector;
#[cfg(feature = "harness")]
pub mod name_server;
#[cfg(feature = "harness")]
pub mod oracle;
#[cfg(feature = "harness")]
pub mod process;
#[cfg(feature = "harness")]
pub mod proxy;
#[cfg(feature = "harness")]
pub mod receiver;
pub mod services;
pub mod wait;

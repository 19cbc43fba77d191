//! What Postrider's tests stand on: real servers, a real receiver, faults, and a judge.
//!
//! * [`services`] starts RabbitMQ, Redis and Postgres, shared ones and private ones that a test may break;
//! * [`wait`] waits for a state, level-triggered and bounded, and says what it last saw.
//!
//! Nothing here outlives its test: every private child is killed on drop and, on Linux, by the kernel when the
//! test process dies. Every recording and every wait has a limit.

pub mod services;
pub mod wait;

//! What Postrider tells its operators: metrics, logs and traces.
//!
//! * [`Metrics`] owns the Prometheus registry. It is made once, passed on as an `Arc`, and nothing is global, so
//!   tests run side by side. Its methods only touch atomics: every series is made at the start, which also lets
//!   dashboards and alerts see a zero instead of nothing.
//! * [`DOCS`] is the list of what is exported; registering takes help texts and units from it, and a test proves
//!   that the two agree.
//! * [`init_logging`] sets up the process's log lines.
//! * [`trace`] makes spans and exports them, when it is turned on.
//!
//! Guarantee: no tenant, endpoint, URL or other unbounded value is a label. Each label's values are an enum of
//! [`labels`].

mod chain;
mod docs;
mod family;
pub mod labels;
mod logging;
mod metrics;
mod registrar;
pub mod trace;

pub use chain::error_chain;
pub use docs::{DOCS, Doc, Kind, docs_table};
pub use logging::{LogFormat, LoggingError, init_logging};
pub use metrics::{CONTENT_TYPE, Metrics};

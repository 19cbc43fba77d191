//! Postrider's settings: one struct per concern, read once at the start.
//!
//! A value comes from, later ones winning: the default, the TOML file, the environment (`POSTRIDER_` and the key in
//! capitals, `__` between section and key), the command line. Then [`Config::validate`] checks the values, each by
//! itself, together, and against the roles of the process, and gives one sentence per rule that is broken.
//!
//! Guarantees:
//! - An unknown key is refused, with the place that it came from and the nearest known key.
//! - Every key has a documentation, a default and a limit, because a field cannot be declared without them (the
//!   `settings!` macro of `setting`); [`reference()`] prints them.
//! - No error, `Debug` or listing of this crate shows a secret or the password in a URL.

mod load;
mod reference;
mod roles;
mod rules;
mod sections;
mod setting;
mod values;

pub use load::{ConfigError, Effective, Loaded, Origin, Overrides, UnknownKey};
pub use reference::reference;
pub use roles::{Role, Roles, RolesError};
pub use sections::{
    Auth, Broker, Config, Delivery, Egress, Ingest, Log, Metrics, Recorder, Redis, Retention, Scheduler,
    Secrets, Server, Store, StoreTarget, Traces,
};
pub use values::{ByteSize, LogFormat, Networks, Period, Ratio, ValueError};

//! Open files: each connection is one, and the usual limit of 1,024 is too few for what the settings allow.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the process' limit as far as the system lets it.
pub(crate) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    match setrlimit(Resource::Nofile, most) {
        Ok(()) => tracing::debug!(limit = most.current, "open files"),
        Err(error) => tracing::warn!(%error, limit = limit.current, "the limit of open files stays as it is"),
    }
}

//! How many connections to receivers are open, and how many were ever opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Connections of a client, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Opened since the client was made, TLS handshake included.
    pub opened: u64,
    /// Of these, still open: at work or idle.
    pub open: u64,
}

/// Shared by a client and its connections.
#[derive(Clone, Default)]
pub(crate) struct Count(Arc<State>);

#[derive(Default)]
struct State {
    opened: AtomicU64,
    closed: AtomicU64,
}

/// An open connection; it is closed when this is dropped.
pub(crate) struct Open(Arc<State>);

impl Count {
    pub(crate) fn open(&self) -> Open {
        self.0.opened.fetch_add(1, Ordering::Relaxed);
        Open(self.0.clone())
    }

    pub(crate) fn now(&self) -> Connections {
        // Closed first: the other order could see more closed than opened.
        let closed = self.0.closed.load(Ordering::Acquire);
        let opened = self.0.opened.load(Ordering::Relaxed);
        Connections {
            opened,
            open: opened.saturating_sub(closed),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed.fetch_add(1, Ordering::Release);
    }
}

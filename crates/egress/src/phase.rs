//! What the running request is waiting for, and until when.
//!
//! The pooled client calls the connector with nothing but an address, so the request's deadline reaches it as a
//! task-local, and what was being waited for comes back the same way, without a lock or an allocation. A connector
//! whose request found another connection meanwhile goes on in a task of its own, where there is no such local:
//! then it neither reads nor writes it.

use std::cell::Cell;
use std::pin::pin;

use tokio::time::Instant;

use crate::failure::Phase;

tokio::task_local! {
    /// The request that this task is sending.
    pub(crate) static ATTEMPT: Attempt;
}

/// The state of one request.
pub(crate) struct Attempt {
    deadline: Instant,
    phase: Cell<Phase>,
}

impl Attempt {
    pub(crate) fn new(deadline: Instant) -> Self {
        Self {
            deadline,
            phase: Cell::new(Phase::Headers),
        }
    }

    /// What was waited for when the request was last polled.
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }
}

/// The deadline of the request that this task is sending, if it is.
pub(crate) fn deadline() -> Option<Instant> {
    ATTEMPT.try_with(|attempt| attempt.deadline).ok()
}

/// Runs a future and notes, each time it is polled, that the request waits in this phase. Inner phases win over
/// outer ones, because they note later.
pub(crate) async fn in_phase<F: Future>(phase: Phase, future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        // Without a request there is nobody to tell.
        let _ = ATTEMPT.try_with(|attempt| attempt.phase.set(phase));
        future.as_mut().poll(cx)
    })
    .await
}

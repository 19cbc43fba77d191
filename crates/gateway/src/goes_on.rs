//! A future that goes on in a task of its own when it is dropped before its end: what a client that hangs up must not stop.
//!
//! While nobody drops it, it costs no task and no wake-up. Its tracker waits for it either way.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TrackedFuture;

/// Runs where it is awaited; if it is dropped before its end, as a task.
pub(crate) struct GoesOn<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    /// None once it has ended.
    future: Option<Pin<Box<TrackedFuture<F>>>>,
}

impl<F> GoesOn<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    pub(crate) fn new(tasks: &TaskTracker, future: F) -> Self {
        Self {
            future: Some(Box::pin(tasks.track_future(future))),
        }
    }
}

impl<F> Future for GoesOn<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = &mut self.future else {
            // It has ended, and who awaited it has its output.
            return Poll::Pending;
        };
        let output = ready!(future.as_mut().poll(context));
        self.future = None;
        Poll::Ready(output)
    }
}

impl<F> Drop for GoesOn<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    fn drop(&mut self) {
        // One that panicked cannot go on; without a runtime the process is ending.
        if !std::thread::panicking()
            && let Some(future) = self.future.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(future);
        }
    }
}

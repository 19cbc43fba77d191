//! Waiting for the confirms of one call.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::vec;

use tokio::sync::oneshot;

use crate::PublishError;

/// Tells of one part of a call what became of its frame.
pub(super) type Confirm = oneshot::Receiver<Result<(), PublishError>>;

/// Resolves when every frame that holds a part of a call is confirmed or failed. The first failure is the call's, but for one
/// that [leaves nothing](PublishError::leaves_nothing) while another part may be out: that is [`PublishError::Lost`]. The
/// call itself is under way, and goes on when this is dropped.
#[derive(Debug)]
#[must_use = "only its outcome tells that what was published is safe"]
pub struct Confirmed {
    /// One for each part whose outcome is not known.
    waiting: vec::IntoIter<Confirm>,
    result: Result<(), PublishError>,
    /// Some part was sent, or may have been.
    is_out: bool,
}

impl Confirmed {
    pub(super) fn new(confirms: Result<Vec<Confirm>, PublishError>) -> Self {
        let (waiting, result) = match confirms {
            Ok(waiting) => (waiting, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        Self {
            waiting: waiting.into_iter(),
            result,
            is_out: false,
        }
    }
}

impl Future for Confirmed {
    type Output = Result<(), PublishError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // One after the other, so that the caller is woken for the one that it waits for alone.
        while let Some(next) = self.waiting.as_mut_slice().first_mut() {
            let confirmed = ready!(Pin::new(next).poll(context));
            self.waiting.next();
            let confirmed = confirmed.unwrap_or(Err(PublishError::Lost));
            self.is_out |= !confirmed.is_err_and(PublishError::leaves_nothing);
            self.result = self.result.and(confirmed);
        }
        Poll::Ready(match self.result {
            Err(error) if self.is_out && error.leaves_nothing() => Err(PublishError::Lost),
            result => result,
        })
    }
}

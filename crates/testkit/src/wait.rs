//! Waiting for a state, not for an event: the condition is asked again until it holds or time is up.
//!
//! A time-out names what was waited for and the last status seen, so that a failed run explains itself.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

/// One look at the state that is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Poll<T> {
    /// It holds; the wait returns this value.
    Ready(T),
    /// Not yet; the text is shown if the wait times out.
    NotYet(String),
}

/// How long to pause between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

/// Asks `look` every 20 ms until it says [`Poll::Ready`], for at most `limit`.
///
/// A look is always taken at least once; one that is still running at the deadline is given up.
///
/// # Errors
/// The first error of `look`, or a time-out that quotes the last status.
pub async fn wait_for<T>(
    what: &str,
    limit: Duration,
    look: impl AsyncFnMut() -> Result<Poll<T>>,
) -> Result<T> {
    wait_for_every(INTERVAL, what, limit, look).await
}

/// [`wait_for`] with another pause between two looks, for looks that cost something.
///
/// # Errors
/// As [`wait_for`].
pub async fn wait_for_every<T>(
    interval: Duration,
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Poll<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut last = "nothing: the first look did not end".to_owned();
    loop {
        match timeout_at(deadline, look()).await {
            Ok(Ok(Poll::Ready(value))) => return Ok(value),
            Ok(Ok(Poll::NotYet(status))) => last = status,
            Ok(Err(error)) => return Err(error.context(format!("while waiting for {what}"))),
            Err(_) => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("{what}: not within {limit:?}; last seen: {last}");
        }
        // One last look at the deadline itself would be cut off, so it comes a little before.
        sleep(if left > interval {
            interval
        } else {
            left / 2 + Duration::from_millis(1)
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn returns_the_value_once_it_is_there() {
        let mut looks = 0;
        let got = wait_for("three looks", Duration::from_secs(5), async || {
            looks += 1;
            Ok(if looks == 3 {
                Poll::Ready(looks)
            } else {
                Poll::NotYet(format!("{looks} looks"))
            })
        })
        .await;
        assert_eq!(got.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_time_out_names_the_goal_and_the_last_status() {
        let error = wait_for::<()>("a pig to fly", Duration::from_millis(50), async || {
            Ok(Poll::NotYet("still grazing".to_owned()))
        })
        .await
        .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("a pig to fly") && text.contains("still grazing"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_given_up_at_the_deadline() {
        let error = wait_for::<()>("an answer", Duration::from_millis(50), async || {
            std::future::pending::<()>().await;
            Ok(Poll::Ready(()))
        })
        .await
        .unwrap_err();
        assert!(error.to_string().contains("first look"), "{error}");
    }
}

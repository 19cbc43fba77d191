//! How a path answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{Response, StatusCode};
use hyper::body::{Body, Frame};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// This status and an empty body.
    Status(u16),
    /// This status with `Retry-After`, in seconds.
    RetryAfter(u16, u64),
    /// This status with a text body.
    Text(u16, String),
    /// 302 to this URL.
    Redirect(String),
    /// Reads the request and never answers.
    Hang,
    /// Reads the request and closes the connection without an answer.
    Close,
    /// 200, then one byte each time this has passed, for ever.
    Drip(Duration),
    /// 200, then a body of this many bytes as fast as it is read.
    Large(u64),
}

impl Reply {
    /// The status that the client is to see.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Status(status) | Self::RetryAfter(status, _) | Self::Text(status, _) => Some(*status),
            Self::Redirect(_) => Some(StatusCode::FOUND.as_u16()),
            Self::Drip(_) | Self::Large(_) => Some(StatusCode::OK.as_u16()),
            Self::Hang | Self::Close => None,
        }
    }

    pub(super) async fn response(self) -> Result<Response<ReplyBody>, Closed> {
        let Some(status) = self.status() else {
            if self == Self::Hang {
                std::future::pending::<()>().await;
            }
            return Err(Closed);
        };
        let mut response = Response::builder().status(status);
        let body = match self {
            Self::RetryAfter(_, seconds) => {
                response = response.header(RETRY_AFTER, seconds);
                ReplyBody::empty()
            }
            Self::Text(_, text) => {
                response = response.header(CONTENT_TYPE, "text/plain");
                ReplyBody::Whole(Some(text.into()))
            }
            Self::Redirect(to) => {
                response = response.header(LOCATION, to);
                ReplyBody::empty()
            }
            Self::Drip(every) => ReplyBody::drip(every),
            Self::Large(bytes) => ReplyBody::Large(bytes),
            Self::Status(_) | Self::Hang | Self::Close => ReplyBody::empty(),
        };
        // A script with an impossible status or URL ends the connection, which no test takes for an answer.
        response.body(body).map_err(|_| Closed)
    }
}

/// How a path answers its requests, one after the other.
#[derive(Debug)]
pub struct Script {
    first: VecDeque<Reply>,
    then: Reply,
    delay: Duration,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    share: f64,
    status: u16,
    random: StdRng,
}

impl Script {
    /// The same answer for ever.
    pub fn always(reply: Reply) -> Self {
        Self {
            first: VecDeque::new(),
            then: reply,
            delay: Duration::ZERO,
            failing: None,
        }
    }

    /// These answers, one a request, then 200 for ever.
    pub fn sequence(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self {
            first: replies.into_iter().collect(),
            ..Self::always(Reply::Status(200))
        }
    }

    /// What is answered for ever after the sequence.
    #[must_use]
    pub fn then(self, reply: Reply) -> Self {
        Self { then: reply, ..self }
    }

    /// How long each answer takes to come.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// A share (0 to 1) of the requests gets `status` instead, chosen at random from `seed`.
    ///
    /// # Panics
    /// If `share` is not between 0 and 1.
    #[must_use]
    pub fn failing(self, share: f64, status: u16, seed: u64) -> Self {
        assert!((0.0..=1.0).contains(&share), "a share is between 0 and 1");
        Self {
            failing: Some(Failing {
                share,
                status,
                random: StdRng::seed_from_u64(seed),
            }),
            ..self
        }
    }

    /// The next answer, and how long it takes.
    pub(super) fn next(&mut self) -> (Reply, Duration) {
        if let Some(failing) = &mut self.failing
            && failing.random.random_bool(failing.share)
        {
            return (Reply::Status(failing.status), self.delay);
        }
        (
            self.first.pop_front().unwrap_or_else(|| self.then.clone()),
            self.delay,
        )
    }
}

/// Tells hyper to close the connection without an answer.
#[derive(Debug)]
pub(super) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed by the script")
    }
}

impl std::error::Error for Closed {}

#[derive(Debug)]
pub(super) enum ReplyBody {
    Whole(Option<Bytes>),
    Drip(Pin<Box<Interval>>),
    Large(u64),
}

impl ReplyBody {
    pub(super) fn empty() -> Self {
        Self::Whole(None)
    }

    fn drip(every: Duration) -> Self {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self::Drip(Box::pin(ticks))
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        const BLOCK: Bytes = Bytes::from_static(&[b'x'; 16_384]);
        let next = match self.get_mut() {
            Self::Whole(bytes) => bytes.take(),
            Self::Drip(ticks) => {
                ready!(ticks.poll_tick(context));
                Some(BLOCK.slice(..1))
            }
            Self::Large(0) => None,
            Self::Large(left) => {
                let size = usize::try_from(*left).unwrap_or(usize::MAX).min(BLOCK.len());
                *left -= size as u64;
                Some(BLOCK.slice(..size))
            }
        };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None) | Self::Large(0))
    }
}

//! What is sent and what comes back.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Uri};
use url::Url;

use crate::policy::{BlockedReason, Policy};

/// A destination that passed the policy, in the form that requests need. Make it once per endpoint; a clone shares
/// its text. Its name is still judged at each connect.
#[derive(Debug, Clone)]
pub struct Target {
    pub(crate) uri: Uri,
    /// The value of the `Host` header.
    pub(crate) host: HeaderValue,
    /// Which of the pools serves it.
    pub(crate) pool_hash: u64,
}

impl Target {
    /// Checks the URL and prepares it. A fragment is dropped.
    ///
    /// # Errors
    /// As [`Policy::check_url`], and [`BlockedReason::NotSendable`].
    pub fn new(url: &Url, policy: &Policy) -> Result<Self, BlockedReason> {
        policy.check_url(url)?;
        let uri: Uri = url.as_str().parse().map_err(|_| BlockedReason::NotSendable)?;
        let authority = uri.authority().ok_or(BlockedReason::NoHost)?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| BlockedReason::NotSendable)?;
        let mut hasher = DefaultHasher::new();
        authority.as_str().hash(&mut hasher);
        Ok(Self {
            host,
            pool_hash: hasher.finish(),
            uri,
        })
    }

    /// The host, without port; IPv6 addresses in brackets. For limits per destination host.
    pub fn host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }
}

/// One POST.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to.
    pub target: Target,
    /// The content type, the signature headers and the endpoint's own ones. What frames or routes a message (`Host`,
    /// `Content-Length`, `Transfer-Encoding`, `Connection` and the like) is set by the client alone and ignored
    /// here. `User-Agent` and `Accept` replace the defaults.
    pub headers: HeaderMap,
    /// Sent as it is.
    pub body: Bytes,
    /// The limit over everything: name lookup, connect, TLS, sending, headers and body.
    pub deadline: Duration,
}

/// A response, whatever its status.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status, 200 to 599 from a decent receiver.
    pub status: u16,
    /// `Retry-After` as it was sent, not yet understood.
    pub retry_after: Option<HeaderValue>,
    /// The beginning of the body, at most [`crate::Settings::response_keep_max`] bytes.
    pub body: Bytes,
    /// Whether the body was longer than what was kept.
    pub truncated: bool,
    /// From the call until the body was read or dropped.
    pub duration: Duration,
}

impl Response {
    /// Whether the receiver took the message: any 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

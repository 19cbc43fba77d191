//! `Idempotency-Key` and `eventId`: promises that a key names one resource.
//!
//! A key is kept as the SHA-256 of its kind, application and text, with the id of the resource and a fingerprint of the
//! request. The first request claims it; a repeat gets the first one's answer, made again from the id. `accept::claim`
//! does so for messages, `once` for requests that change configuration.

use std::time::Duration;

use http::HeaderMap;
use postrider_model::AppId;
use sha2::{Digest as _, Sha256};

use crate::error::Error;

/// How long a caller's own key, or an event id, is kept.
pub(crate) const TTL: Duration = Duration::from_secs(24 * 3600);
/// How long a key is kept that a client library made up for its own retries.
const AUTO_TTL: Duration = Duration::from_secs(15 * 60);
/// How long an unfinished claim keeps a repeat waiting.
pub(crate) const PENDING_TTL: Duration = Duration::from_secs(5);
/// How often a repeat looks whether the first request is finished.
pub(crate) const POLL: Duration = Duration::from_millis(50);
/// How long a repeat waits at most: until it may take over, and a little.
pub(crate) const WAIT: Duration = Duration::from_secs(6);
const KEY_CHARS_MAX: usize = 256;

/// Where claims of requests that belong to no application are kept: an id that no application has.
pub(crate) const NO_APP: AppId = postrider_limits::EVERY_APP;

/// A caller's idempotency key.
#[derive(Clone, Debug)]
pub(crate) struct IdempotencyKey {
    text: String,
    pub(crate) ttl: Duration,
}

impl IdempotencyKey {
    /// From the request's headers, if it has one.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, Error> {
        let Some(value) = headers.get("idempotency-key") else {
            return Ok(None);
        };
        let text = value
            .to_str()
            .ok()
            .filter(|text| (1..=KEY_CHARS_MAX).contains(&text.len()));
        let text = text.ok_or_else(|| {
            Error::invalid(
                &["header", "idempotency-key"],
                "Must be 1 to 256 visible ASCII characters.",
            )
        })?;
        let ttl = if text.starts_with("auto_") { AUTO_TTL } else { TTL };
        Ok(Some(Self {
            text: text.to_owned(),
            ttl,
        }))
    }

    /// The claim's key.
    pub(crate) fn hash(&self, app: AppId) -> [u8; 32] {
        digest(&[b"idem", app.as_bytes(), self.text.as_bytes()])
    }
}

/// The claim's key of an event id.
pub(crate) fn event_id_hash(app: AppId, event_id: &str) -> [u8; 32] {
    digest(&[b"event", app.as_bytes(), event_id.as_bytes()])
}

/// SHA-256 over parts, each with its length, so that no two lists of parts run together.
pub(crate) fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The answer to a key that was used with another body.
pub(crate) fn reused() -> Error {
    Error::unprocessable(
        "idempotency_key_reused",
        &["header", "idempotency-key"],
        "This key was used with another request; use a new key for a new request.",
    )
}

/// The answer when the first request is still in progress after all that waiting.
pub(crate) fn in_progress() -> Error {
    Error::unavailable(
        "request_in_progress",
        "An earlier request with this key is still in progress; try again.",
        Duration::from_secs(1),
    )
}

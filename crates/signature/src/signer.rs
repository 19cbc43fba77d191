//! Signing an attempt with every key of an endpoint.
//!
//! This runs once per attempt, tens of thousands of times a second. The HMAC key blocks are hashed once, when the
//! signer is made; signing allocates the header value and, only when there is an Ed25519 key, one copy of the
//! signed content (Ed25519 reads its message twice, so it cannot be streamed).

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer as _;
use ed25519_dalek::SigningKey;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::secret::{Key, SigningSecret};

/// The most keys a signer holds: the current one and ten that are being rotated out.
pub const KEYS_MAX: usize = 11;

/// `v1,` and 44 base64 characters.
const V1_CHARS: usize = 47;
/// `v1a,` and 88 base64 characters.
const V1A_CHARS: usize = 92;
/// The digits and the sign of an `i64`.
const TIMESTAMP_CHARS_MAX: usize = 20;

/// An endpoint was given more than [`KEYS_MAX`] keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an endpoint has at most {KEYS_MAX} signing secrets at a time")]
pub struct TooManyKeys;

/// An endpoint's keys, ready to sign. Cheap to clone; wiped when the last clone is dropped.
#[derive(Clone)]
pub struct Signer {
    keys: Arc<[Prepared]>,
    header_chars: usize,
    any_ed25519: bool,
}

#[derive(Clone)]
pub(crate) enum Prepared {
    /// The state after the key block.
    Symmetric(Box<Hmac<Sha256>>),
    Ed25519(Box<SigningKey>),
}

impl Signer {
    /// Prepares the keys; signatures appear in this order, so the current key comes first.
    ///
    /// # Errors
    /// [`TooManyKeys`] for more than [`KEYS_MAX`].
    pub fn new(secrets: impl IntoIterator<Item = SigningSecret>) -> Result<Self, TooManyKeys> {
        // One more than allowed is enough to know, however long the iterator is.
        let keys: Arc<[Prepared]> = secrets
            .into_iter()
            .take(KEYS_MAX + 1)
            .map(|secret| Prepared::new(&secret))
            .collect();
        if keys.len() > KEYS_MAX {
            return Err(TooManyKeys);
        }
        let any_ed25519 = keys.iter().any(|key| matches!(key, Prepared::Ed25519(_)));
        let header_chars = keys.iter().map(|key| 1 + key.signature_chars()).sum();
        Ok(Self {
            keys,
            header_chars,
            any_ed25519,
        })
    }

    /// The value of the signature header for this attempt: one signature per key, separated by spaces. Empty for a
    /// signer without keys.
    ///
    /// `timestamp_s` is the time of this attempt in Unix seconds, the same as in the timestamp header.
    pub fn sign(&self, message_id: &str, timestamp_s: i64, body: &[u8]) -> String {
        let mut digits = [0; TIMESTAMP_CHARS_MAX];
        let timestamp = decimal(timestamp_s, &mut digits);
        let content = if self.any_ed25519 {
            content(message_id, timestamp, body)
        } else {
            Vec::new()
        };

        let mut header = String::with_capacity(self.header_chars);
        for key in self.keys.iter() {
            if !header.is_empty() {
                header.push(' ');
            }
            match key {
                Prepared::Symmetric(state) => {
                    header.push_str("v1,");
                    let tag = mac(state, message_id, timestamp, body).finalize().into_bytes();
                    STANDARD.encode_string(tag, &mut header);
                }
                Prepared::Ed25519(key) => {
                    header.push_str("v1a,");
                    STANDARD.encode_string(key.sign(&content).to_bytes(), &mut header);
                }
            }
        }
        header
    }

    /// How many keys sign.
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }
}

impl Prepared {
    fn new(secret: &SigningSecret) -> Self {
        match &secret.0 {
            Key::Symmetric(bytes) => Self::Symmetric(Box::new(keyed(bytes))),
            Key::Ed25519(key) => Self::Ed25519(key.clone()),
        }
    }

    fn signature_chars(&self) -> usize {
        match self {
            Self::Symmetric(_) => V1_CHARS,
            Self::Ed25519(_) => V1A_CHARS,
        }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({} keys, redacted)", self.keys.len())
    }
}

/// HMAC-SHA256 keyed with these bytes.
pub(crate) fn keyed(bytes: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(bytes).expect("HMAC takes keys of every length")
}

/// The HMAC over the signed content, without a copy of the body.
pub(crate) fn mac(state: &Hmac<Sha256>, message_id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = state.clone();
    mac.update(message_id.as_bytes());
    mac.update(b".");
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    mac
}

/// The signed content in one piece.
pub(crate) fn content(message_id: &str, timestamp: &str, body: &[u8]) -> Vec<u8> {
    [message_id.as_bytes(), timestamp.as_bytes(), body].join(&b'.')
}

/// Writes a number in decimal without the heap.
pub(crate) fn decimal(number: i64, digits: &mut [u8; TIMESTAMP_CHARS_MAX]) -> &str {
    use std::io::Write as _;

    let mut rest = &mut digits[..];
    write!(rest, "{number}").expect("an i64 fits 20 characters");
    let written = TIMESTAMP_CHARS_MAX - rest.len();
    std::str::from_utf8(&digits[..written]).expect("decimal digits are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A published vector whose key, at 18 bytes, is shorter than what [`SigningSecret`] takes.
    #[test]
    fn vector_of_a_short_key() {
        let key = STANDARD.decode("plJ3nmyCDGBKInavdOK15jsl").expect("base64");
        let body = br#"{"event_type":"ping","data":{"success":true}}"#;
        let tag = mac(&keyed(&key), "msg_loFOjxBNrRLzqYUf", "1731705121", body)
            .finalize()
            .into_bytes();
        assert_eq!(
            STANDARD.encode(tag),
            "rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="
        );
    }
}

//! Verifying a received request: what `postrider sink` and the tests do.
//!
//! Guarantees: signatures are compared in constant time; every key is tried on every signature of its kind, up to
//! limits; a request whose time is outside the tolerance is refused whatever its signature says, so a recorded
//! request cannot be replayed for ever.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Verifier as _, VerifyingKey};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::secret::{Key, PublicKey, SigningSecret};
use crate::signer::{content, decimal, keyed, mac};

/// How far a request's time may differ from the receiver's clock, both ways, in seconds (what the public
/// verification libraries use).
pub const TOLERANCE_S_DEFAULT: i64 = 300;

/// Signatures of a header that are looked at; the rest is ignored. A sender has at most 11 keys.
const SIGNATURES_MAX: usize = 32;

/// Why a request did not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The request is older than the tolerance.
    #[error("the timestamp is {age_s} s in the past, more than the tolerated {tolerance_s} s")]
    TooOld {
        /// How old the request is, in seconds.
        age_s: i64,
        /// What is tolerated, in seconds.
        tolerance_s: i64,
    },
    /// The request comes from the future by more than the tolerance.
    #[error("the timestamp is {ahead_s} s in the future, more than the tolerated {tolerance_s} s")]
    TooNew {
        /// How far in the future, in seconds.
        ahead_s: i64,
        /// What is tolerated, in seconds.
        tolerance_s: i64,
    },
    /// The header holds no signature of a version that is known here.
    #[error("the signature header holds no v1 or v1a signature")]
    NoSignature,
    /// There are signatures, but none is by one of the keys over this content.
    #[error("no signature matches one of the keys")]
    NoMatch,
}

/// A key to verify with: the secret itself, or the public half of an Ed25519 key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerificationKey {
    /// A secret key; of an Ed25519 one only the public half is used.
    Secret(SigningSecret),
    /// An Ed25519 public key.
    Public(PublicKey),
}

impl From<SigningSecret> for VerificationKey {
    fn from(secret: SigningSecret) -> Self {
        Self::Secret(secret)
    }
}

impl From<PublicKey> for VerificationKey {
    fn from(key: PublicKey) -> Self {
        Self::Public(key)
    }
}

/// A receiver's keys. A request verifies when one signature matches one key.
#[derive(Default)]
pub struct Verifier {
    symmetric: Vec<Hmac<Sha256>>,
    ed25519: Vec<VerifyingKey>,
}

impl Verifier {
    /// Prepares the keys.
    pub fn new(keys: impl IntoIterator<Item = impl Into<VerificationKey>>) -> Self {
        let mut verifier = Self::default();
        for key in keys {
            match key.into() {
                VerificationKey::Public(key) => verifier.ed25519.push(key.0),
                VerificationKey::Secret(secret) => match &secret.0 {
                    Key::Symmetric(bytes) => verifier.symmetric.push(keyed(bytes)),
                    Key::Ed25519(key) => verifier.ed25519.push(key.verifying_key()),
                },
            }
        }
        verifier
    }

    /// Checks one request. `timestamp_s` and `header` are the values of the timestamp and signature headers,
    /// `now_s` the receiver's clock in Unix seconds, `tolerance_s` usually [`TOLERANCE_S_DEFAULT`].
    ///
    /// # Errors
    /// The first rule that the request breaks, time before signature.
    pub fn verify(
        &self,
        message_id: &str,
        timestamp_s: i64,
        header: &str,
        body: &[u8],
        now_s: i64,
        tolerance_s: i64,
    ) -> Result<(), VerifyError> {
        let age_s = now_s.saturating_sub(timestamp_s);
        if age_s > tolerance_s {
            return Err(VerifyError::TooOld { age_s, tolerance_s });
        }
        if age_s < -tolerance_s {
            return Err(VerifyError::TooNew {
                ahead_s: age_s.saturating_neg(),
                tolerance_s,
            });
        }

        let mut digits = [0; 20];
        let timestamp = decimal(timestamp_s, &mut digits);
        let mut known = 0;
        for signature in header.split(' ').take(SIGNATURES_MAX) {
            let matches = match signature.split_once(',') {
                Some(("v1", tag)) => self.symmetric_matches(tag, message_id, timestamp, body),
                Some(("v1a", tag)) => self.ed25519_matches(tag, message_id, timestamp, body),
                _ => continue,
            };
            known += 1;
            if matches {
                return Ok(());
            }
        }
        Err(if known == 0 {
            VerifyError::NoSignature
        } else {
            VerifyError::NoMatch
        })
    }

    fn symmetric_matches(&self, tag: &str, message_id: &str, timestamp: &str, body: &[u8]) -> bool {
        let Ok(tag) = STANDARD.decode(tag) else {
            return false;
        };
        // `verify_slice` compares in constant time.
        self.symmetric
            .iter()
            .any(|key| mac(key, message_id, timestamp, body).verify_slice(&tag).is_ok())
    }

    fn ed25519_matches(&self, tag: &str, message_id: &str, timestamp: &str, body: &[u8]) -> bool {
        let Ok(tag) = STANDARD.decode(tag) else {
            return false;
        };
        let Ok(signature) = Signature::from_slice(&tag) else {
            return false;
        };
        let content = content(message_id, timestamp, body);
        self.ed25519
            .iter()
            .any(|key| key.verify(&content, &signature).is_ok())
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Verifier({} symmetric, {} ed25519)",
            self.symmetric.len(),
            self.ed25519.len()
        )
    }
}

//! Standard Webhooks signatures: the keys, signing and verifying.
//!
//! A signed request carries three headers ([`HeaderStyle`] names them): the message id, the time of this attempt
//! in Unix seconds, and a list of signatures over `{id}.{timestamp}.{body}`. A signature is `v1,` followed by the
//! base64 of an HMAC-SHA256, or `v1a,` followed by the base64 of an Ed25519 signature
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>).
//!
//! * [`SigningSecret`] is one key. It parses from the text that tenants see (`whsec_…`, `whsk_…`), never shows
//!   itself in `Debug`, and is wiped from memory when dropped.
//! * [`Signer`] is an endpoint's keys made ready for the hot path: an attempt is signed with all of them, so a
//!   receiver that knows either the old or the new key verifies during a rotation.
//! * [`Verifier`] is the other side, for `postrider sink` and for tests: constant-time, with a tolerance for
//!   clocks that differ.
//!
//! No I/O, no clock: time and randomness are passed in.

mod headers;
mod secret;
mod signer;
mod verifier;

pub use headers::HeaderStyle;
pub use secret::{
    PublicKey, SYMMETRIC_BYTES_DEFAULT, SYMMETRIC_BYTES_MAX, SYMMETRIC_BYTES_MIN, SecretError, SigningSecret,
};
pub use signer::{KEYS_MAX, Signer, TooManyKeys};
pub use verifier::{TOLERANCE_S_DEFAULT, VerificationKey, Verifier, VerifyError};

//! What Postrider must keep to itself: encryption at rest, API keys, and URLs that carry credentials.
//!
//! * [`Keyring`] seals what is stored (endpoint secrets, credentials, payloads) with XChaCha20-Poly1305 and opens
//!   what it or an older key sealed.
//! * [`ApiKey`] is what a caller presents, [`KeyHash`] what is stored of it, [`Scope`] what it may do.
//! * [`RedactedUrl`] holds a service's URL and shows it without the password.
//!
//! Guarantee: no type of this crate prints a secret through `Debug`, `Display` or an error. The one way to a
//! secret's text is a method named `expose`.

mod api_key;
mod keyring;
mod keyring_file;
mod redacted_url;

pub use api_key::{ApiKey, ApiKeyError, KeyHash, Scope, ScopeError};
pub use keyring::{KEYS_MAX, KeyId, Keyring, KeyringError, OVERHEAD_BYTES, OpenError};
pub use keyring_file::KeyFileError;
pub use redacted_url::RedactedUrl;

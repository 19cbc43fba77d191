//! Keys and their text forms.
//!
//! Guarantees: every rule of the text form has its own error; no error, `Debug` or `Display` shows key material;
//! key bytes are wiped when dropped. An Ed25519 key whose public half does not belong to its secret half is
//! refused, since signing with such a pair gives the secret away.

use std::fmt;
use std::hash::{Hash, Hasher};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ed25519_dalek::{SigningKey, VerifyingKey};
use rand::CryptoRng;
use secrecy::SecretString;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// The shortest symmetric key, in bytes (Standard Webhooks: 192 bits).
pub const SYMMETRIC_BYTES_MIN: usize = 24;
/// The longest symmetric key, in bytes: 100 base64 characters.
pub const SYMMETRIC_BYTES_MAX: usize = 75;
/// The size of a generated symmetric key, in bytes.
pub const SYMMETRIC_BYTES_DEFAULT: usize = 24;

const SYMMETRIC_PREFIX: &str = "whsec_";
const ED25519_PREFIX: &str = "whsk_";
const ED25519_PUBLIC_PREFIX: &str = "whpk_";
const ED25519_PAIR_BYTES: usize = 64;
const ED25519_PUBLIC_BYTES: usize = 32;
/// No valid key has a longer text, prefix apart; longer input is refused before it is decoded.
const BASE64_CHARS_MAX: usize = 100;

/// Some senders write secrets without `=`; both forms mean the same key.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a text is no key. The text itself is never part of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// Nothing, or nothing after the prefix.
    #[error("the secret is empty")]
    Empty,
    /// More text than any valid key has.
    #[error("the secret is longer than {BASE64_CHARS_MAX} base64 characters")]
    TooLong,
    /// Something that begins like a key of a kind that is not known here.
    #[error("the secret's prefix is unknown; use whsec_ (symmetric) or whsk_ (ed25519)")]
    UnknownPrefix,
    /// A public key where a secret one belongs.
    #[error("this is a public key (whpk_); the secret key (whsk_) is needed")]
    PublicKeyGiven,
    /// A public key was expected.
    #[error("a public key begins with whpk_")]
    NotPublicKey,
    /// Not base64 in the standard alphabet.
    #[error("the secret is not standard base64")]
    NotBase64,
    /// A symmetric key of too few bytes.
    #[error("a symmetric secret needs at least {SYMMETRIC_BYTES_MIN} bytes, this one has {0}")]
    SymmetricTooShort(usize),
    /// A symmetric key of too many bytes.
    #[error("a symmetric secret has at most {SYMMETRIC_BYTES_MAX} bytes, this one has {0}")]
    SymmetricTooLong(usize),
    /// An Ed25519 pair of the wrong size.
    #[error("an ed25519 secret has {ED25519_PAIR_BYTES} bytes (secret, then public key), this one has {0}")]
    Ed25519Length(usize),
    /// An Ed25519 pair whose halves do not belong together.
    #[error("the public half of the ed25519 secret does not belong to its secret half")]
    Ed25519Mismatch,
    /// An Ed25519 public key of the wrong size, or not a point of the curve.
    #[error("not an ed25519 public key of {ED25519_PUBLIC_BYTES} bytes")]
    Ed25519Public,
}

/// One secret key of an endpoint: symmetric (`whsec_`, HMAC-SHA256) or Ed25519 (`whsk_`).
///
/// Two secrets are equal when their key material is; the comparison takes constant time.
#[derive(Clone)]
pub struct SigningSecret(pub(crate) Key);

#[derive(Clone)]
pub(crate) enum Key {
    Symmetric(Zeroizing<Vec<u8>>),
    Ed25519(Box<SigningKey>),
}

impl SigningSecret {
    /// Parses `whsec_<base64 of 24 to 75 bytes>` (the prefix may be missing, padding too) or
    /// `whsk_<base64 of the 32-byte secret key and the 32-byte public key>`.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        if let Some(rest) = text.strip_prefix(ED25519_PREFIX) {
            return Self::ed25519_from_pair(&decode(rest)?);
        }
        if text.starts_with(ED25519_PUBLIC_PREFIX) {
            return Err(SecretError::PublicKeyGiven);
        }
        let rest = text.strip_prefix(SYMMETRIC_PREFIX).unwrap_or(text);
        // `_` is no character of standard base64, so it can only come from a foreign prefix.
        if rest.contains('_') {
            return Err(SecretError::UnknownPrefix);
        }
        Self::symmetric_from_zeroizing(decode(rest)?)
    }

    /// A symmetric key of these bytes, 24 to 75 of them.
    pub fn symmetric(bytes: &[u8]) -> Result<Self, SecretError> {
        Self::symmetric_from_zeroizing(Zeroizing::new(bytes.to_vec()))
    }

    /// A new symmetric key of [`SYMMETRIC_BYTES_DEFAULT`] random bytes.
    pub fn generate_symmetric(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = Zeroizing::new(vec![0; SYMMETRIC_BYTES_DEFAULT]);
        rng.fill_bytes(&mut bytes);
        Self(Key::Symmetric(bytes))
    }

    /// A new Ed25519 key.
    pub fn generate_ed25519(rng: &mut impl CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *seed);
        Self(Key::Ed25519(Box::new(SigningKey::from_bytes(&seed))))
    }

    /// The text form with its prefix: what `parse` reads, and what the tenant is shown when asking for it.
    pub fn to_text(&self) -> SecretString {
        let text = match &self.0 {
            Key::Symmetric(bytes) => encode(SYMMETRIC_PREFIX, bytes),
            Key::Ed25519(key) => encode(ED25519_PREFIX, &*Zeroizing::new(key.to_keypair_bytes())),
        };
        SecretString::from(text)
    }

    /// The public key to give to the receiver; `None` for a symmetric key, which has none.
    pub fn public_key(&self) -> Option<PublicKey> {
        match &self.0 {
            Key::Symmetric(_) => None,
            Key::Ed25519(key) => Some(PublicKey(key.verifying_key())),
        }
    }

    /// The text of [`Self::public_key`], `whpk_…`.
    pub fn public_text(&self) -> Option<String> {
        self.public_key().map(|key| key.to_string())
    }

    /// Whether this is an Ed25519 key, so that signatures read `v1a,`.
    pub fn is_ed25519(&self) -> bool {
        matches!(self.0, Key::Ed25519(_))
    }

    fn symmetric_from_zeroizing(bytes: Zeroizing<Vec<u8>>) -> Result<Self, SecretError> {
        match bytes.len() {
            short if short < SYMMETRIC_BYTES_MIN => Err(SecretError::SymmetricTooShort(short)),
            long if long > SYMMETRIC_BYTES_MAX => Err(SecretError::SymmetricTooLong(long)),
            _ => Ok(Self(Key::Symmetric(bytes))),
        }
    }

    fn ed25519_from_pair(bytes: &[u8]) -> Result<Self, SecretError> {
        let pair: &[u8; ED25519_PAIR_BYTES] = bytes
            .try_into()
            .map_err(|_| SecretError::Ed25519Length(bytes.len()))?;
        let key = SigningKey::from_keypair_bytes(pair).map_err(|_| SecretError::Ed25519Mismatch)?;
        Ok(Self(Key::Ed25519(Box::new(key))))
    }
}

impl std::str::FromStr for SigningSecret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        Self::parse(text)
    }
}

impl PartialEq for SigningSecret {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Key::Symmetric(one), Key::Symmetric(two)) => one.as_slice().ct_eq(two.as_slice()).into(),
            (Key::Ed25519(one), Key::Ed25519(two)) => one.as_bytes().ct_eq(two.as_bytes()).into(),
            _ => false,
        }
    }
}

impl Eq for SigningSecret {}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Key::Symmetric(_) => "SigningSecret(whsec_[redacted])",
            Key::Ed25519(_) => "SigningSecret(whsk_[redacted])",
        })
    }
}

/// The public half of an Ed25519 key; its text is `whpk_<base64 of 32 bytes>`. No secret: it shows itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(pub(crate) VerifyingKey);

impl PublicKey {
    /// Parses `whpk_<base64 of 32 bytes>`.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let rest = text
            .strip_prefix(ED25519_PUBLIC_PREFIX)
            .ok_or(SecretError::NotPublicKey)?;
        let bytes = decode(rest)?;
        let bytes: &[u8; ED25519_PUBLIC_BYTES] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| SecretError::Ed25519Public)?;
        VerifyingKey::from_bytes(bytes)
            .map(Self)
            .map_err(|_| SecretError::Ed25519Public)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(ED25519_PUBLIC_PREFIX, self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl Hash for PublicKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_bytes().hash(state);
    }
}

fn decode(text: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    if text.is_empty() {
        return Err(SecretError::Empty);
    }
    if text.len() > BASE64_CHARS_MAX {
        return Err(SecretError::TooLong);
    }
    LENIENT
        .decode(text)
        .map(Zeroizing::new)
        .map_err(|_| SecretError::NotBase64)
}

fn encode(prefix: &str, bytes: &[u8]) -> String {
    // Sized in advance: growing would leave copies of the key behind.
    let mut text = String::with_capacity(prefix.len() + bytes.len().div_ceil(3) * 4);
    text.push_str(prefix);
    STANDARD.encode_string(bytes, &mut text);
    text
}

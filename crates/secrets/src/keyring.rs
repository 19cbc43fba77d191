//! Encryption at rest: one current key that seals, and older ones that only open.
//!
//! A sealed value is `version (1) | key id (4) | nonce (24) | ciphertext | tag (16)`. The nonce is random:
//! 192 bits make a repeat negligible at any rate (draft-irtf-cfrg-xchacha, section 3.1), so no counter has to be
//! shared between processes. The header is authenticated together with the caller's `aad`, which names the row and
//! column the value belongs to, so a sealed value that is copied to another row does not open there.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use rand::TryRng as _;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const HEADER_BYTES: usize = 1 + 4 + NONCE_BYTES;
const PREFIX: &str = "psk_";

/// What sealing adds to a value, in bytes.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;

/// The most keys a ring holds: the current one and those still being rotated out.
pub const KEYS_MAX: usize = 16;

/// The first four bytes of a key's SHA-256. Not secret: it tells which key opens a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// Why a text is not a key ring. Never contains any part of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// There is no key in the text.
    #[error("no key given; make one with `openssl rand -base64 32` and put `psk_` before it")]
    Empty,
    /// A key lacks the prefix.
    #[error("key {position} does not start with `psk_`")]
    Prefix {
        /// Which of the keys, from 1.
        position: usize,
    },
    /// A key is not the Base64 form of 32 bytes.
    #[error(
        "key {position} is not `psk_` and the base64 of 32 bytes; make one with `openssl rand -base64 32`"
    )]
    Malformed {
        /// Which of the keys, from 1.
        position: usize,
    },
    /// Two keys have the same id: the same key twice.
    #[error("key {position} repeats an earlier one")]
    Repeated {
        /// Which of the keys, from 1.
        position: usize,
    },
    /// More than [`KEYS_MAX`] keys.
    #[error("more than {KEYS_MAX} keys; remove the oldest once nothing is sealed with them")]
    TooMany,
}

/// Why a sealed value did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The key that sealed it is not in the ring.
    #[error("sealed with key {id}, which is not among the configured secrets keys")]
    UnknownKey {
        /// The key that is missing.
        id: KeyId,
    },
    /// Cut short, altered, or copied from another row.
    #[error("sealed value is damaged or belongs to another row")]
    Corrupt,
    /// Written by a newer Postrider.
    #[error("sealed value has format version {version}, which this version cannot read")]
    UnsupportedVersion {
        /// The value's first byte.
        version: u8,
    },
}

struct Key {
    id: KeyId,
    cipher: XChaCha20Poly1305,
}

impl Key {
    fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        let digest = Sha256::digest(bytes);
        let id = KeyId([digest[0], digest[1], digest[2], digest[3]]);
        Self {
            id,
            cipher: XChaCha20Poly1305::new(bytes.into()),
        }
    }
}

/// The keys that protect what is stored. The first seals; all open.
pub struct Keyring {
    keys: Vec<Key>,
}

impl Keyring {
    /// Reads `psk_<base64 of 32 bytes>`, or several separated by commas, the current one first. Both Base64
    /// alphabets are read, padded or not.
    ///
    /// # Errors
    /// When the text holds no key, more than [`KEYS_MAX`], a malformed one, or one twice.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let mut keys: Vec<Key> = Vec::new();
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        for (position, part) in (1..).zip(parts) {
            if position > KEYS_MAX {
                return Err(KeyringError::TooMany);
            }
            let encoded = part
                .strip_prefix(PREFIX)
                .ok_or(KeyringError::Prefix { position })?;
            let bytes = decode_key(encoded).ok_or(KeyringError::Malformed { position })?;
            let key = Key::new(&bytes);
            if keys.iter().any(|known| known.id == key.id) {
                return Err(KeyringError::Repeated { position });
            }
            keys.push(key);
        }
        if keys.is_empty() {
            Err(KeyringError::Empty)
        } else {
            Ok(Self { keys })
        }
    }

    /// A ring of one new random key, and the text from which [`Keyring::parse`] makes it again.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn generate() -> Result<(Self, SecretString), std::io::Error> {
        let mut bytes = Zeroizing::new([0_u8; KEY_BYTES]);
        rand::rngs::SysRng
            .try_fill_bytes(&mut *bytes)
            .map_err(std::io::Error::other)?;
        let text = Zeroizing::new(format!("{PREFIX}{}", STANDARD.encode(*bytes)));
        Ok((
            Self {
                keys: vec![Key::new(&bytes)],
            },
            SecretString::from(text.as_str()),
        ))
    }

    /// The key that seals.
    pub fn current(&self) -> KeyId {
        self.keys[0].id
    }

    /// Whether `sealed` was sealed by another key than the current one, so that a rotation should seal it anew.
    pub fn is_stale(&self, sealed: &[u8]) -> bool {
        sealed.get(1..5) != Some(&self.current().0[..])
    }

    /// Encrypts `plaintext` for the row that `aad` names, such as `endpoint/ep_…/secret`.
    pub fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        self.seal_into(aad, plaintext, &mut sealed);
        sealed
    }

    /// As [`Keyring::seal`], appended to `out`: no allocation when `out` has [`OVERHEAD_BYTES`] more than the
    /// plaintext to spare.
    ///
    /// # Panics
    /// When the plaintext is over 256 GiB, the cipher's limit; bodies are limited far below.
    pub fn seal_into(&self, aad: &[u8], plaintext: &[u8], out: &mut Vec<u8>) {
        let key = &self.keys[0];
        let start = out.len();
        let mut nonce = [0_u8; NONCE_BYTES];
        rand::fill(&mut nonce);
        out.reserve(plaintext.len() + OVERHEAD_BYTES);
        out.push(VERSION);
        out.extend_from_slice(&key.id.0);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plaintext);
        let (header, body) = out[start..].split_at_mut(HEADER_BYTES);
        let tag = with_bound_aad(header, aad, |bound| {
            key.cipher
                .encrypt_inout_detached(&XNonce::from(nonce), bound, body.into())
        })
        .expect("plaintext is under the cipher's 256 GiB");
        out.extend_from_slice(&tag);
    }

    /// Decrypts what was sealed for the same `aad`.
    ///
    /// # Errors
    /// When the key is unknown, the format is newer, or the bytes or the `aad` are not those that were sealed.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let version = *sealed.first().ok_or(OpenError::Corrupt)?;
        if version != VERSION {
            return Err(OpenError::UnsupportedVersion { version });
        }
        let (header, rest) = sealed.split_at_checked(HEADER_BYTES).ok_or(OpenError::Corrupt)?;
        let (body, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(OpenError::Corrupt)?;
        let (id, nonce) = header[1..].split_first_chunk::<4>().ok_or(OpenError::Corrupt)?;
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| OpenError::Corrupt)?;
        let id = KeyId(*id);
        let key = self
            .keys
            .iter()
            .find(|key| key.id == id)
            .ok_or(OpenError::UnknownKey { id })?;
        let mut plaintext = body.to_vec();
        with_bound_aad(header, aad, |bound| {
            let buffer = plaintext.as_mut_slice().into();
            key.cipher
                .decrypt_inout_detached(&XNonce::from(nonce), bound, buffer, &Tag::from(*tag))
        })
        .map_err(|_| OpenError::Corrupt)?;
        Ok(plaintext)
    }
}

impl Keyring {
    /// What `sealed` becomes under the current key; `None` when it is under that key already.
    ///
    /// # Errors
    /// As [`Keyring::open`].
    pub fn reseal(&self, aad: &[u8], sealed: &[u8]) -> Result<Option<Vec<u8>>, OpenError> {
        if !self.is_stale(sealed) {
            return Ok(None);
        }
        let plain = Zeroizing::new(self.open(aad, sealed)?);
        Ok(Some(self.seal(aad, &plain)))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.keys.iter().map(|key| key.id))
            .finish()
    }
}

/// Calls `run` with `version | key id | aad`. Row identities are short, so the usual case stays on the stack.
fn with_bound_aad<T>(header: &[u8], aad: &[u8], run: impl FnOnce(&[u8]) -> T) -> T {
    const BOUND_BYTES: usize = 5;
    let mut stack = [0_u8; 128];
    let length = BOUND_BYTES + aad.len();
    if let Some(bound) = stack.get_mut(..length) {
        bound[..BOUND_BYTES].copy_from_slice(&header[..BOUND_BYTES]);
        bound[BOUND_BYTES..].copy_from_slice(aad);
        run(bound)
    } else {
        run(&[&header[..BOUND_BYTES], aad].concat())
    }
}

fn decode_key(encoded: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let trimmed = encoded.trim_end_matches('=');
    let decoded = STANDARD_NO_PAD
        .decode(trimmed)
        .or_else(|_| URL_SAFE_NO_PAD.decode(trimmed))
        .ok()?;
    let decoded = Zeroizing::new(decoded);
    let mut bytes = Zeroizing::new([0_u8; KEY_BYTES]);
    if decoded.len() != KEY_BYTES {
        return None;
    }
    bytes.copy_from_slice(&decoded);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use super::*;

    const OLD: &str = "psk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const NEW: &str = "psk_Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA";
    const ROW: &[u8] = b"endpoint/ep_1/secret";

    #[test]
    fn opens_what_it_sealed_for_the_same_row_only() {
        let ring = Keyring::parse(OLD).unwrap();
        let sealed = ring.seal(ROW, b"whsec_x");
        assert_eq!(sealed.len(), b"whsec_x".len() + OVERHEAD_BYTES);
        assert_eq!(ring.open(ROW, &sealed).unwrap(), b"whsec_x");
        assert_eq!(
            ring.open(b"endpoint/ep_2/secret", &sealed),
            Err(OpenError::Corrupt)
        );
        assert_ne!(sealed, ring.seal(ROW, b"whsec_x"), "a nonce was used twice");
    }

    /// A value sealed by the first release must open for ever: its format is fixed.
    #[test]
    fn opens_a_value_of_the_first_release() {
        let ring = Keyring::parse(OLD).unwrap();
        let sealed = [
            1, 0x63, 0x0d, 0xcd, 0x29, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
            20, 21, 22, 23,
        ];
        assert_eq!(ring.current(), KeyId([0x63, 0x0d, 0xcd, 0x29]));
        let mut whole = sealed.to_vec();
        whole.extend_from_slice(FROZEN_BODY);
        assert_eq!(ring.open(ROW, &whole).unwrap(), b"frozen");
    }

    /// From an independent XChaCha20-Poly1305: key 00..1f, nonce 00..17, aad `01 630dcd29` and [`ROW`].
    const FROZEN_BODY: &[u8] = &[
        0xf8, 0xb0, 0x60, 0x05, 0xf5, 0xbc, 0x6a, 0xac, 0x9e, 0x90, 0x09, 0xc4, 0x72, 0xbb, 0x27, 0xa4, 0x12,
        0xc2, 0x03, 0x6b, 0xc9, 0xe0,
    ];

    #[test]
    fn rotation_reads_the_old_and_seals_with_the_new() {
        let old = Keyring::parse(OLD).unwrap();
        let both = Keyring::parse(&format!("{NEW}, {OLD}")).unwrap();
        let new = Keyring::parse(NEW).unwrap();
        let sealed_old = old.seal(ROW, b"a");
        assert_eq!(both.open(ROW, &sealed_old).unwrap(), b"a");
        assert!(both.is_stale(&sealed_old));
        let sealed_new = both.seal(ROW, b"a");
        assert!(!both.is_stale(&sealed_new));
        assert_eq!(both.reseal(ROW, &sealed_new), Ok(None));
        let anew = both.reseal(ROW, &sealed_old).unwrap().unwrap();
        assert_eq!(new.open(ROW, &anew).unwrap(), b"a");
        assert!(new.reseal(ROW, &sealed_old).is_err());
        assert_eq!(new.open(ROW, &sealed_new).unwrap(), b"a");
        assert_eq!(
            old.open(ROW, &sealed_new),
            Err(OpenError::UnknownKey { id: new.current() })
        );
    }

    #[test]
    fn a_long_row_identity_is_bound_too() {
        let ring = Keyring::parse(OLD).unwrap();
        let row = [b'r'; 300];
        let sealed = ring.seal(&row, b"a");
        assert_eq!(ring.open(&row, &sealed).unwrap(), b"a");
        assert_eq!(ring.open(&row[1..], &sealed), Err(OpenError::Corrupt));
    }

    #[test]
    fn seal_into_appends_without_growing_a_large_enough_buffer() {
        let ring = Keyring::parse(OLD).unwrap();
        let mut out = Vec::with_capacity(3 + 5 + OVERHEAD_BYTES);
        out.extend_from_slice(b"abc");
        let capacity = out.capacity();
        ring.seal_into(ROW, b"hello", &mut out);
        assert_eq!((&out[..3], out.capacity()), (&b"abc"[..], capacity));
        assert_eq!(ring.open(ROW, &out[3..]).unwrap(), b"hello");
    }

    #[test]
    fn refuses_what_is_not_a_ring() {
        assert_eq!(Keyring::parse(" , ").unwrap_err(), KeyringError::Empty);
        assert_eq!(
            Keyring::parse("secret").unwrap_err(),
            KeyringError::Prefix { position: 1 }
        );
        let short = format!("{NEW},psk_AAEC");
        assert_eq!(
            Keyring::parse(&short).unwrap_err(),
            KeyringError::Malformed { position: 2 }
        );
        let twice = format!("{NEW},{NEW}");
        assert_eq!(
            Keyring::parse(&twice).unwrap_err(),
            KeyringError::Repeated { position: 2 }
        );
        let many: Vec<String> = (0..=KEYS_MAX)
            .map(|_| Keyring::generate().unwrap().1.expose_secret().to_owned())
            .collect();
        assert_eq!(
            Keyring::parse(&many.join(",")).unwrap_err(),
            KeyringError::TooMany
        );
    }

    #[test]
    fn a_generated_ring_is_made_again_from_its_text_and_hides_it() {
        let (ring, text) = Keyring::generate().unwrap();
        let again = Keyring::parse(text.expose_secret()).unwrap();
        assert_eq!(again.open(ROW, &ring.seal(ROW, b"a")).unwrap(), b"a");
        let shown = format!("{ring:?} {text:?}");
        assert!(!shown.contains(&text.expose_secret()[4..20]), "{shown}");
    }

    proptest! {
        #[test]
        fn any_altered_byte_is_noticed(
            plaintext in proptest::collection::vec(any::<u8>(), 0..200), place in any::<usize>(), flip in 1_u8..,
        ) {
            let ring = Keyring::parse(OLD).unwrap();
            let mut sealed = ring.seal(ROW, &plaintext);
            let place = place % sealed.len();
            sealed[place] ^= flip;
            prop_assert!(ring.open(ROW, &sealed).is_err());
            prop_assert!(ring.open(ROW, &sealed[..place]).is_err());
        }
    }
}

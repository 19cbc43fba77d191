//! API keys: what a caller presents, what is stored of it, and what it may do.
//!
//! A key is 32 random bytes, so one round of SHA-256 is enough to keep it at rest: there is nothing to guess.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

const PREFIX: &str = "prk_";
const KEY_BYTES: usize = 32;
const TEXT_CHARS: usize = 43;

/// An application's id is at most this long in a scope, in bytes.
const SCOPE_APP_BYTES_MAX: usize = 256;

/// A key as its holder knows it: `prk_` and 43 characters. Shows only its first two characters.
#[derive(Clone)]
pub struct ApiKey(Zeroizing<String>);

/// The text is not of the form `prk_` and 43 characters of URL-safe Base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API key: expected `prk_` and 43 letters, digits, `-` or `_`")]
pub struct ApiKeyError;

impl ApiKey {
    /// A new random key.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn generate() -> Result<Self, std::io::Error> {
        let mut bytes = Zeroizing::new([0_u8; KEY_BYTES]);
        rand::rngs::SysRng
            .try_fill_bytes(&mut *bytes)
            .map_err(std::io::Error::other)?;
        let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes));
        Ok(Self(Zeroizing::new(format!("{PREFIX}{}", encoded.as_str()))))
    }

    /// The key itself: to be shown once, to whoever made it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What to store and look up.
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(&self.0)
    }
}

impl FromStr for ApiKey {
    type Err = ApiKeyError;

    fn from_str(text: &str) -> Result<Self, ApiKeyError> {
        let body = text.strip_prefix(PREFIX).ok_or(ApiKeyError)?;
        let plain = body
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if body.len() != TEXT_CHARS || !plain {
            return Err(ApiKeyError);
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.0.get(..PREFIX.len() + 2).unwrap_or(PREFIX))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({self})")
    }
}

impl PartialEq for ApiKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for ApiKey {}

/// The SHA-256 of a key. Compares in constant time; not secret in itself, but shown by its first bytes only.
#[derive(Clone, Copy, Eq)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// The hash of whatever a caller presented, whether it has a key's form or not: the operator's own admin key
    /// may be any text.
    pub fn of(presented: &str) -> Self {
        Self(Sha256::digest(presented.as_bytes()).into())
    }
}

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

// By hand, beside the constant-time equality: equal hashes hash alike, since both look at the same bytes.
impl std::hash::Hash for KeyHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// What a key may do. Its text form is `admin`, `ingest` or `app:<application id>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everything.
    Admin,
    /// Creating messages, for any application.
    Ingest,
    /// Reading and managing one application, by its id.
    App(String),
}

/// Why a text is not a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// None of the known forms.
    #[error("unknown scope `{0}`: expected `admin`, `ingest` or `app:<application id>`")]
    Unknown(String),
    /// `app:` with an id that is empty, too long or has characters that no id has.
    #[error("`app:` needs the id of an application: letters, digits, `_`, `-` and `.`, at most 256")]
    App,
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        match text {
            "admin" => Ok(Self::Admin),
            "ingest" => Ok(Self::Ingest),
            _ => match text.strip_prefix("app:") {
                Some(id) if is_app_id(id) => Ok(Self::App(id.to_owned())),
                Some(_) => Err(ScopeError::App),
                None => Err(ScopeError::Unknown(text.chars().take(32).collect())),
            },
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::Ingest => f.write_str("ingest"),
            Self::App(id) => write!(f, "app:{id}"),
        }
    }
}

fn is_app_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !id.is_empty() && id.len() <= SCOPE_APP_BYTES_MAX && id.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_parses_and_has_the_fixed_form() {
        let key = ApiKey::generate().unwrap();
        assert_eq!(key.expose().len(), 47);
        assert_eq!(key.expose().parse::<ApiKey>().unwrap(), key);
        assert_ne!(ApiKey::generate().unwrap(), key);
        assert_eq!(key.hash(), KeyHash::of(key.expose()));
    }

    #[test]
    fn hides_itself() {
        let key: ApiKey = "prk_abAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".parse().unwrap();
        assert_eq!(format!("{key} {key:?}"), "prk_ab… ApiKey(prk_ab…)");
        let hash = KeyHash::of("abc");
        assert_eq!(format!("{hash:?}"), "KeyHash(ba78…)", "FIPS 180-4's example, cut");
    }

    #[test]
    fn refuses_what_has_another_form() {
        for text in [
            "",
            "prk_",
            "prk_short",
            "psk_abAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(text.parse::<ApiKey>(), Err(ApiKeyError), "{text}");
        }
        let spaced = format!("prk_{}", " ".repeat(43));
        assert_eq!(spaced.parse::<ApiKey>(), Err(ApiKeyError));
        let accented = format!("prk_{}a", "é".repeat(21));
        assert_eq!(accented.parse::<ApiKey>(), Err(ApiKeyError));
    }

    #[test]
    fn scopes_keep_their_text_form() {
        for text in ["admin", "ingest", "app:app_2x"] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        assert_eq!(
            "root".parse::<Scope>(),
            Err(ScopeError::Unknown("root".to_owned()))
        );
        let long = format!("app:{}", "a".repeat(257));
        for text in ["app:", "app:a b", "app:a/b", &long] {
            assert_eq!(text.parse::<Scope>(), Err(ScopeError::App), "{text}");
        }
    }
}

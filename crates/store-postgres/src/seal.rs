//! What is sealed, and which row each sealed value is bound to.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use postrider_model::{EndpointId, EndpointSecret, MessageId, UnixMillis};
use postrider_secrets::{Keyring, OpenError};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::error::{Work, corrupt};

/// The keyring with the names of this schema's rows.
pub(crate) struct Sealer {
    keyring: Arc<Keyring>,
}

fn bound_to(kind: &[u8], id: Uuid) -> Vec<u8> {
    let mut name = kind.to_vec();
    name.extend_from_slice(id.as_bytes());
    name
}

impl Sealer {
    pub(crate) fn new(keyring: Arc<Keyring>) -> Self {
        Self { keyring }
    }

    fn seal(&self, kind: &[u8], id: Uuid, plain: &[u8]) -> Vec<u8> {
        self.keyring.seal(&bound_to(kind, id), plain)
    }

    fn open(&self, kind: &[u8], id: Uuid, sealed: &[u8]) -> Work<Vec<u8>> {
        self.keyring
            .open(&bound_to(kind, id), sealed)
            .map_err(|error| corrupt(format!("{} of {id}: {error}", String::from_utf8_lossy(kind))))
    }

    /// Whether another key than the ring's first sealed this value, of which the first 5 bytes will do.
    pub(crate) fn is_stale(&self, sealed: &[u8]) -> bool {
        self.keyring.is_stale(sealed)
    }

    /// A value under the ring's first key; `None` when it is so already.
    pub(crate) fn reseal(&self, kind: &[u8], id: Uuid, sealed: &[u8]) -> Result<Option<Vec<u8>>, OpenError> {
        self.keyring.reseal(&bound_to(kind, id), sealed)
    }

    /// A message's payload.
    pub(crate) fn payload(&self, id: MessageId, payload: &[u8]) -> Vec<u8> {
        self.seal(b"payload", id.as_uuid(), payload)
    }

    /// A sealed payload's bytes.
    pub(crate) fn open_payload(&self, id: MessageId, sealed: &[u8]) -> Work<Bytes> {
        self.open(b"payload", id.as_uuid(), sealed).map(Bytes::from)
    }

    /// A parked frame or record, which may hold payloads. Its row has no number yet, so the value is bound to its kind
    /// alone.
    pub(crate) fn parked(&self, bytes: &[u8]) -> Vec<u8> {
        self.seal(b"parked", Uuid::nil(), bytes)
    }

    /// A parked frame's or record's bytes; `None` when the key that sealed them is not there.
    pub(crate) fn open_parked(&self, sealed: &[u8]) -> Option<Bytes> {
        let opened = self.keyring.open(&bound_to(b"parked", Uuid::nil()), sealed);
        opened.ok().map(Bytes::from)
    }

    /// An endpoint's request headers.
    pub(crate) fn headers(&self, id: EndpointId, headers: &BTreeMap<String, SecretString>) -> Vec<u8> {
        let plain: BTreeMap<&str, &str> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose_secret()))
            .collect();
        self.seal(b"headers", id.as_uuid(), &json(&plain))
    }

    /// An endpoint's request headers, opened.
    pub(crate) fn open_headers(&self, id: EndpointId, sealed: &[u8]) -> Work<BTreeMap<String, SecretString>> {
        let plain: BTreeMap<String, String> = self.open_json(b"headers", id.as_uuid(), sealed)?;
        Ok(plain
            .into_iter()
            .map(|(name, value)| (name, value.into()))
            .collect())
    }

    /// An endpoint's signing secrets.
    pub(crate) fn secrets(&self, id: EndpointId, secrets: &[EndpointSecret]) -> Vec<u8> {
        let plain: Vec<(&str, Option<i64>)> = secrets
            .iter()
            .map(|secret| (secret.text.expose_secret(), secret.expires_at.map(|at| at.0)))
            .collect();
        self.seal(b"secrets", id.as_uuid(), &json(&plain))
    }

    /// An endpoint's signing secrets, opened.
    pub(crate) fn open_secrets(&self, id: EndpointId, sealed: &[u8]) -> Work<Vec<EndpointSecret>> {
        let plain: Vec<(String, Option<i64>)> = self.open_json(b"secrets", id.as_uuid(), sealed)?;
        Ok(plain
            .into_iter()
            .map(|(text, expires_at)| EndpointSecret {
                text: text.into(),
                expires_at: expires_at.map(UnixMillis),
            })
            .collect())
    }

    fn open_json<T: serde::de::DeserializeOwned>(&self, kind: &[u8], id: Uuid, sealed: &[u8]) -> Work<T> {
        let plain = self.open(kind, id, sealed)?;
        serde_json::from_slice(&plain).map_err(|_| corrupt(format!("sealed value of {id} is not JSON")))
    }
}

/// JSON of maps and lists of strings and numbers, which cannot fail.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

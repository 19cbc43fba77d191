//! Typed, prefixed, time-sortable identifiers. Adding a kind is one line in the registry below.
//!
//! An id is a UUID whose first 48 bits are a Unix time in milliseconds (RFC 9562, versions 7 and 8). Its text is
//! the kind's prefix and 22 base-62 digits, most significant first, so text order, byte order and time order
//! agree. Stores keep the 16 bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::time::UnixMillis;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const TEXT_LEN: usize = 22;

/// Why a text is not an id of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The kind's prefix is missing.
    #[error("an id of this kind starts with `{0}`")]
    Prefix(&'static str),
    /// What follows the prefix is not 22 base-62 digits of a 128-bit number.
    #[error("after `{0}` an id has 22 letters and digits")]
    Body(&'static str),
}

/// Two digits for each number below 62².
static PAIRS: [[u8; 2]; 62 * 62] = {
    let mut pairs = [[0; 2]; 62 * 62];
    let mut number = 0;
    while number < pairs.len() {
        pairs[number] = [DIGITS[number / 62], DIGITS[number % 62]];
        number += 1;
    }
    pairs
};

/// In chunks of ten digits that fit 64 bits, since a 128-bit division costs as much as ten of those, and of these two
/// digits at a time.
fn encode(uuid: Uuid) -> [u8; TEXT_LEN] {
    const CHUNK_LEN: usize = 10;
    const CHUNK: u128 = 62_u128.pow(10);
    const PAIR: u64 = 62 * 62;
    let mut rest = uuid.as_u128();
    let mut text = [b'0'; TEXT_LEN];
    for slots in text.rchunks_mut(CHUNK_LEN) {
        let above = rest / CHUNK;
        let mut chunk = u64::try_from(rest - above * CHUNK).unwrap_or(0);
        rest = above;
        for slot in slots.rchunks_exact_mut(2) {
            slot.copy_from_slice(&PAIRS[usize::try_from(chunk % PAIR).unwrap_or(0)]);
            chunk /= PAIR;
        }
    }
    text
}

fn decode(text: &str) -> Option<Uuid> {
    if text.len() != TEXT_LEN {
        return None;
    }
    let mut value = 0_u128;
    for byte in text.bytes() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'A'..=b'Z' => byte - b'A' + 10,
            b'a'..=b'z' => byte - b'a' + 36,
            _ => return None,
        };
        value = value.checked_mul(62)?.checked_add(u128::from(digit))?;
    }
    Some(Uuid::from_u128(value))
}

/// An id from a time and 10 bytes that make it unique: random ones, or a hash where the id must be derivable.
fn from_parts(at: UnixMillis, tail: [u8; 10]) -> Uuid {
    let millis = u64::try_from(at.0).unwrap_or(0).to_be_bytes();
    let mut bytes = [0_u8; 16];
    bytes[..6].copy_from_slice(&millis[2..]);
    bytes[6..].copy_from_slice(&tail);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

fn hashed_tail(parts: &[&[u8]]) -> [u8; 10] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let digest = hash.finalize();
    let mut tail = [0_u8; 10];
    tail.copy_from_slice(&digest[..10]);
    tail
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// What the text form of this kind starts with.
            pub const PREFIX: &'static str = $prefix;

            /// A new id for the time `at`, unique by 74 bits from `rng`.
            pub fn generate(at: UnixMillis, rng: &mut (impl rand::Rng + ?Sized)) -> Self {
                let mut tail = [0_u8; 10];
                rng.fill_bytes(&mut tail);
                Self(from_parts(at, tail))
            }

            /// The stored form.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The stored form as a UUID.
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }

            /// From the stored form.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// From the stored form; `None` unless there are 16 bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Uuid::from_slice(bytes).ok().map(Self)
            }

            /// When the thing was made, by the clock of the process that made the id.
            pub fn created_at(&self) -> UnixMillis {
                let mut millis = [0_u8; 8];
                millis[2..].copy_from_slice(&self.0.as_bytes()[..6]);
                UnixMillis(i64::try_from(u64::from_be_bytes(millis)).unwrap_or(i64::MAX))
            }

            /// The smallest id of the time `at`: a bound for lists by time and for partitions.
            pub fn floor(at: UnixMillis) -> Self {
                let millis = u64::try_from(at.0).unwrap_or(0).to_be_bytes();
                let mut bytes = [0_u8; 16];
                bytes[..6].copy_from_slice(&millis[2..]);
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // In one piece, so that a string grows once.
                let mut text = [0; $prefix.len() + TEXT_LEN];
                let (prefix, digits) = text.split_at_mut($prefix.len());
                prefix.copy_from_slice($prefix.as_bytes());
                digits.copy_from_slice(&encode(self.0));
                f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let body = text.strip_prefix($prefix).ok_or(IdError::Prefix($prefix))?;
                decode(body).map(Self).ok_or(IdError::Body($prefix))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// An application: a tenant.
    AppId = "app_";
    /// One attempt to deliver.
    AttemptId = "atmpt_";
    /// One message to one endpoint.
    DeliveryId = "dlv_";
    /// An endpoint of an application.
    EndpointId = "ep_";
    /// An event type.
    EventTypeId = "evtype_";
    /// An API key (its public name, not its secret).
    KeyId = "key_";
    /// A message: one accepted event.
    MessageId = "msg_";
    /// A background task, such as a recovery.
    TaskId = "qtask_";
}

impl DeliveryId {
    /// The automatic delivery of `message` to `endpoint`: the same however often a fan-out is repeated.
    pub fn derive(message: MessageId, endpoint: EndpointId) -> Self {
        Self::derive_again(message, endpoint, &[])
    }

    /// A delivery made by hand (a resend or a recovery), told apart by `nonce`, so that a repeated request makes
    /// the same delivery.
    pub fn derive_again(message: MessageId, endpoint: EndpointId, nonce: &[u8]) -> Self {
        let tail = hashed_tail(&[message.as_bytes(), endpoint.as_bytes(), nonce]);
        Self(from_parts(message.created_at(), tail))
    }
}

impl MessageId {
    /// The id of the `index`-th message of the batch whose claim holds `base`.
    pub fn of_batch(base: Self, index: u32) -> Self {
        if index == 0 {
            return base;
        }
        Self(from_parts(
            base.created_at(),
            hashed_tail(&[base.as_bytes(), &index.to_be_bytes()]),
        ))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn text_order_is_time_order() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        let ids: Vec<MessageId> = (0..500)
            .map(|n| MessageId::generate(UnixMillis(1_700_000_000_000 + n), &mut rng))
            .collect();
        let mut texts: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let in_time_order = texts.clone();
        texts.sort();
        assert_eq!(texts, in_time_order);
        let read: Vec<_> = in_time_order.iter().map(|text| text.parse()).collect();
        assert_eq!(read, ids.into_iter().map(Ok).collect::<Vec<_>>());
    }

    #[test]
    fn the_text_of_a_number_is_frozen() {
        let cases = [
            (0, "0000000000000000000000"),
            (1, "0000000000000000000001"),
            (62 * 62 - 1, "00000000000000000000zz"),
            (62_u128.pow(10), "0000000000010000000000"),
            (u128::MAX, "7n42DGM5Tflk9n8mt7Fhc7"),
        ];
        for (number, digits) in cases {
            let id = MessageId::from_uuid(Uuid::from_u128(number));
            assert_eq!(id.to_string(), format!("msg_{digits}"));
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn text_round_trips_and_keeps_time() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let id = EndpointId::generate(UnixMillis(1_763_700_000_123), &mut rng);
        assert_eq!(id.to_string().parse::<EndpointId>(), Ok(id));
        assert_eq!(id.created_at(), UnixMillis(1_763_700_000_123));
        assert!(id >= EndpointId::floor(UnixMillis(1_763_700_000_123)));
    }

    #[test]
    fn foreign_and_broken_texts_are_refused() {
        assert_eq!("app_x".parse::<MessageId>(), Err(IdError::Prefix("msg_")));
        assert_eq!("msg_x".parse::<MessageId>(), Err(IdError::Body("msg_")));
        assert_eq!(
            "msg_zzzzzzzzzzzzzzzzzzzzzz".parse::<MessageId>(),
            Err(IdError::Body("msg_"))
        );
        assert_eq!(
            "msg_000000000000000000000é".parse::<MessageId>(),
            Err(IdError::Body("msg_"))
        );
    }

    #[test]
    fn a_delivery_id_depends_on_message_endpoint_and_nonce_only() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(2);
        let message = MessageId::generate(UnixMillis(1_763_700_000_000), &mut rng);
        let endpoint = EndpointId::generate(UnixMillis(1_763_600_000_000), &mut rng);
        assert_eq!(
            DeliveryId::derive(message, endpoint),
            DeliveryId::derive(message, endpoint)
        );
        assert_ne!(
            DeliveryId::derive(message, endpoint),
            DeliveryId::derive_again(message, endpoint, b"1")
        );
        assert_eq!(
            DeliveryId::derive(message, endpoint).created_at(),
            message.created_at()
        );
    }
}

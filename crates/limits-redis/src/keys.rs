//! Names of keys, and which of them share a node.
//!
//! What belongs to an application is tagged `{app}`, what belongs to an endpoint `{endpoint}`, so that one script
//! call touches one slot of a cluster (the hash tags of the Redis cluster specification).

use std::fmt::{Display, Write as _};

use postrider_model::{AppId, DeliveryId, EndpointId};

const SLOTS: u16 = 16_384;
/// Bytes of the longest key behind its prefix: an application's id between `:{` and `}:c:`, and the 32 of a claim.
const TAGGED_MAX: usize = 64;

/// Makes the keys under one prefix.
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// The channel on which changed applications are told.
    pub(crate) fn channel(&self) -> String {
        format!("{}:changed", self.prefix)
    }

    /// Endpoints whose breaker opened, by the time in seconds at which they may be forgotten. Outside of the scripts,
    /// since it is one key for all endpoints.
    pub(crate) fn open_breakers(&self) -> String {
        format!("{}:open", self.prefix)
    }

    pub(crate) fn version(&self, app: AppId) -> Vec<u8> {
        self.tagged(app, "v")
    }

    pub(crate) fn quota(&self, app: AppId) -> Vec<u8> {
        self.tagged(app, "q")
    }

    pub(crate) fn claim(&self, app: AppId, key: &[u8; 32]) -> Vec<u8> {
        let mut name = self.tagged(app, "c:");
        name.extend_from_slice(key);
        name
    }

    pub(crate) fn endpoint(&self, endpoint: EndpointId) -> Vec<u8> {
        self.tagged(endpoint, "s")
    }

    pub(crate) fn mark(&self, endpoint: EndpointId, delivery: DeliveryId, run: u32) -> Vec<u8> {
        let mut name = self.tagged(endpoint, "d:");
        name.extend_from_slice(delivery.as_bytes());
        if run > 0 {
            name.extend_from_slice(&run.to_be_bytes());
        }
        name
    }

    /// `<prefix>:{<tag>}:<kind>`, with room for what follows: every delivery has several keys.
    fn tagged(&self, tag: impl Display, kind: &str) -> Vec<u8> {
        let mut name = String::with_capacity(self.prefix.len() + TAGGED_MAX);
        // Writing to a string cannot fail.
        let _ = write!(name, "{}:{{{tag}}}:{kind}", self.prefix);
        name.into_bytes()
    }
}

/// The cluster's slot of a hash tag: CRC-16/XMODEM of its bytes, modulo 16,384.
pub(crate) fn slot(tag: &str) -> u16 {
    let mut crc = 0_u16;
    for byte in tag.bytes() {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
        }
    }
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use postrider_model::UnixMillis;

    use super::*;

    /// Processes of neighbouring releases share them.
    #[test]
    fn names_are_frozen_and_have_their_room() {
        let keys = Keys::new("p");
        let app = AppId::floor(UnixMillis(0));
        let endpoint = EndpointId::floor(UnixMillis(0));
        let delivery = DeliveryId::floor(UnixMillis(0));
        let zeros = "0".repeat(22);
        let of_app =
            |kind: &str, rest: &[u8]| [format!("p:{{app_{zeros}}}:{kind}").as_bytes(), rest].concat();
        let of_endpoint =
            |kind: &str, rest: &[u8]| [format!("p:{{ep_{zeros}}}:{kind}").as_bytes(), rest].concat();
        let named = [
            (keys.version(app), of_app("v", b"")),
            (keys.quota(app), of_app("q", b"")),
            (keys.claim(app, &[7; 32]), of_app("c:", &[7; 32])),
            (keys.endpoint(endpoint), of_endpoint("s", b"")),
            (keys.mark(endpoint, delivery, 0), of_endpoint("d:", &[0; 16])),
            (
                keys.mark(endpoint, delivery, 258),
                of_endpoint("d:", &[&[0; 18][..], &[1, 2]].concat()),
            ),
        ];
        for (name, expected) in named {
            assert_eq!(name, expected);
            assert_eq!(name.capacity(), 1 + TAGGED_MAX, "it did not grow");
        }
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        // The specification's check value is 0x31C3; `foo` is what CLUSTER KEYSLOT answers.
        assert_eq!(slot("123456789"), 0x31C3 % SLOTS);
        assert_eq!(slot("foo"), 12_182);
        assert_eq!(slot(""), 0);
    }
}

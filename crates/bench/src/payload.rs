//! The message that is measured: a JSON object of an exact size whose first fields, at fixed places, say when it was
//! meant to be sent and which one it is. The receiver reads them without parsing JSON.

use bytes::{BufMut, Bytes, BytesMut};

const HEAD: &[u8] = br#"{"t":""#;
const MIDDLE: &[u8] = br#"","n":""#;
const REST: &[u8] = br#"","pad":""#;
const TAIL: &[u8] = br#""}"#;
const TIME_DIGITS: usize = 20;
const NUMBER_DIGITS: usize = 10;
const TIME_AT: usize = HEAD.len();
const NUMBER_AT: usize = TIME_AT + TIME_DIGITS + MIDDLE.len();
/// The smallest object that can be made.
pub(crate) const BYTES_MIN: usize = NUMBER_AT + NUMBER_DIGITS + REST.len() + TAIL.len();

/// A request body with the object inside, ready to be stamped.
pub(crate) struct Template {
    bytes: Bytes,
    object_at: usize,
}

/// What a message says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// When it was meant to be sent, by [`crate::clock::now_ns`].
    pub(crate) sent_ns: u64,
    /// Its number in its run.
    pub(crate) number: u64,
}

impl Template {
    /// An object of `bytes` bytes (at least [`BYTES_MIN`]) between two texts.
    pub(crate) fn new(before: &str, bytes: usize, after: &str) -> Self {
        let mut out = BytesMut::with_capacity(before.len() + bytes + after.len());
        out.put_slice(before.as_bytes());
        out.put_slice(HEAD);
        out.put_bytes(b'0', TIME_DIGITS);
        out.put_slice(MIDDLE);
        out.put_bytes(b'0', NUMBER_DIGITS);
        out.put_slice(REST);
        out.put_bytes(b'x', bytes.saturating_sub(BYTES_MIN));
        out.put_slice(TAIL);
        out.put_slice(after.as_bytes());
        Self {
            bytes: out.freeze(),
            object_at: before.len(),
        }
    }

    /// A copy with this stamp.
    pub(crate) fn stamped(&self, stamp: Stamp) -> Bytes {
        let mut out = BytesMut::from(&self.bytes[..]);
        write_digits(&mut out[self.object_at + TIME_AT..][..TIME_DIGITS], stamp.sent_ns);
        write_digits(
            &mut out[self.object_at + NUMBER_AT..][..NUMBER_DIGITS],
            stamp.number,
        );
        out.freeze()
    }
}

/// Reads the stamp of an object; none if it is not one of ours.
pub(crate) fn stamp_of(object: &[u8]) -> Option<Stamp> {
    if !object.starts_with(HEAD) {
        return None;
    }
    Some(Stamp {
        sent_ns: digits(object.get(TIME_AT..)?.get(..TIME_DIGITS)?)?,
        number: digits(object.get(NUMBER_AT..)?.get(..NUMBER_DIGITS)?)?,
    })
}

fn write_digits(out: &mut [u8], mut value: u64) {
    for place in out.iter_mut().rev() {
        *place = b"0123456789"[usize::try_from(value % 10).unwrap_or_default()];
        value /= 10;
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0_u64, |sum, &digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_back_and_the_size_is_exact() {
        let stamp = Stamp {
            sent_ns: u64::MAX - 7,
            number: 1_234_567,
        };
        for size in [BYTES_MIN, 1_024, 262_144] {
            let body = Template::new("{\"payload\":", size, "}").stamped(stamp);
            let object = &body[11..body.len() - 1];
            assert_eq!(object.len(), size);
            assert_eq!(stamp_of(object), Some(stamp));
            serde_json::from_slice::<serde_json::Value>(&body).unwrap();
        }
    }

    #[test]
    fn other_bodies_have_no_stamp() {
        assert_eq!(stamp_of(b""), None);
        assert_eq!(stamp_of(b"{\"t\":\"12"), None);
        assert_eq!(stamp_of(&[b'x'; 200]), None);
    }
}

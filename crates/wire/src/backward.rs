//! Writes protobuf from its end to its start.
//!
//! A nested message has its length in front. Written last to first, the length is known when its turn comes, and nothing has
//! to be measured beforehand or moved afterwards. Who writes fields in descending order gets them in ascending order: the
//! same bytes that `prost` makes of the same values.
//!
//! Numbers that are zero and texts that are empty are left out, as proto3 has it for fields without `optional`
//! (<https://protobuf.dev/programming-guides/encoding/>).

use bytes::{Buf as _, Bytes};

const VARINT: u8 = 0;
const LENGTH_DELIMITED: u8 = 2;
/// Bytes of an id.
const ID: u8 = 16;
/// Bytes of the longest varint.
const VARINT_MAX: usize = 10;

/// What is written so far lies at the end of the buffer.
pub(crate) struct Backward {
    buffer: Vec<u8>,
    start: usize,
}

impl Backward {
    /// With room for so many bytes; it grows when there are more. What stays free is kept as long as what was written, so
    /// ask for little more than is needed.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self {
            buffer: vec![0; bytes],
            start: bytes,
        }
    }

    /// All that was written.
    pub(crate) fn finish(self) -> Bytes {
        let mut all = Bytes::from(self.buffer);
        all.advance(self.start);
        all
    }

    /// A number, unless it is zero. Signed ones are given by their bits (`cast_unsigned`), sign-extended to 64.
    pub(crate) fn number(&mut self, field: u8, value: impl Into<u64>) {
        let value = value.into();
        if value != 0 {
            self.optional(field, value);
        }
    }

    /// A number, also zero.
    pub(crate) fn optional(&mut self, field: u8, value: u64) {
        self.varint(value);
        self.tag(field, VARINT);
    }

    /// Bytes or a text, unless empty.
    pub(crate) fn bytes(&mut self, field: u8, value: impl AsRef<[u8]>) {
        if !value.as_ref().is_empty() {
            self.item(field, value);
        }
    }

    /// Bytes or a text, also empty: one of a list, or of a field that is `optional`.
    pub(crate) fn item(&mut self, field: u8, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        self.put(value);
        self.varint(value.len() as u64);
        self.tag(field, LENGTH_DELIMITED);
    }

    /// An id: 16 bytes.
    pub(crate) fn id(&mut self, field: u8, id: &[u8; ID as usize]) {
        let mut item = [0; 2 + ID as usize];
        item[0] = tag(field, LENGTH_DELIMITED);
        item[1] = ID;
        item[2..].copy_from_slice(id);
        self.put(&item);
    }

    /// A message, also an empty one.
    pub(crate) fn message(&mut self, field: u8, write: impl FnOnce(&mut Self)) {
        let end = self.written();
        write(self);
        self.varint((self.written() - end) as u64);
        self.tag(field, LENGTH_DELIMITED);
    }

    fn written(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn tag(&mut self, field: u8, wire_type: u8) {
        self.put(&[tag(field, wire_type)]);
    }

    fn varint(&mut self, mut value: u64) {
        // Most lengths, numbers and flags.
        if value < 0x80 {
            return self.put(&[(value & 0x7f) as u8]);
        }
        let mut digits = [0; VARINT_MAX];
        let mut len = 0;
        loop {
            // Seven bits a byte, least significant first; the top bit says that more follow.
            let byte = (value & 0x7f) as u8;
            value >>= 7;
            digits[len] = if value == 0 { byte } else { byte | 0x80 };
            len += 1;
            if value == 0 {
                break;
            }
        }
        self.put(&digits[..len]);
    }

    fn put(&mut self, bytes: &[u8]) {
        if bytes.len() > self.start {
            self.grow(bytes.len());
        }
        let start = self.start - bytes.len();
        self.buffer[start..self.start].copy_from_slice(bytes);
        self.start = start;
    }

    #[cold]
    fn grow(&mut self, least: usize) {
        let more = least.max(self.buffer.len());
        let mut larger = vec![0; self.buffer.len() + more];
        larger[self.start + more..].copy_from_slice(&self.buffer[self.start..]);
        self.buffer = larger;
        self.start += more;
    }
}

/// All of our fields have numbers below 16, whose tags take one byte.
const fn tag(field: u8, wire_type: u8) -> u8 {
    assert!(field < 16, "a field whose tag takes two bytes");
    field << 3 | wire_type
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_and_keeps_what_was_written() {
        for room in [0, 1, 7, 1_000] {
            let mut writer = Backward::with_capacity(room);
            writer.message(2, |writer| {
                writer.item(1, "");
                writer.bytes(3, [7; 300]);
                writer.bytes(3, "");
                writer.number(1, 0_u64);
                writer.optional(1, 0);
            });
            writer.number(1, (-1_i64).cast_unsigned());
            let mut expected = vec![0x08];
            expected.extend([0xff; 9]);
            expected.push(0x01);
            // The length of the message: two fields of two bytes, and one of 300 behind a tag and a length of two bytes.
            expected.extend([0x12, 0xb3, 0x02, 0x08, 0x00, 0x1a, 0xac, 0x02]);
            expected.extend([7; 300]);
            expected.extend([0x0a, 0x00]);
            assert_eq!(writer.finish(), expected, "room for {room}");
        }
    }
}

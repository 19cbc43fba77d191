//! Why bytes are not a frame, or an item of a frame is not usable.

/// Bytes that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Larger than [`crate::MAX_BYTES`].
    #[error("a frame of {found} bytes is above the limit")]
    TooLarge {
        /// Its size.
        found: usize,
    },
    /// More items than [`crate::MAX_ITEMS`].
    #[error("a frame of {found} items is above the limit")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// Not protobuf of this schema.
    #[error("the bytes are not a frame")]
    Malformed(#[source] prost::DecodeError),
    /// Written by a newer release.
    #[error("the frame has schema {found}, this release reads up to {}", crate::SCHEMA)]
    Schema {
        /// The frame's version; 0 when it names none.
        found: u32,
    },
    /// Neither jobs nor a journal.
    #[error("the frame is of an unknown kind")]
    Kind,
    /// An item cannot be used.
    #[error("item {index} of the frame")]
    Item {
        /// Its place, from 0.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: ItemError,
    },
}

/// What is wrong with one job or record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// An id or hash of the wrong length.
    #[error("`{field}` has {found} bytes, not {wanted}")]
    Length {
        /// Which field.
        field: &'static str,
        /// Its length.
        found: usize,
        /// The right length.
        wanted: usize,
    },
    /// A field that must be there is not, or holds a kind that this release does not know.
    #[error("`{field}` is missing or of an unknown kind")]
    Missing {
        /// Which field.
        field: &'static str,
    },
    /// An enum value that this release does not know.
    #[error("`{field}` has the unknown value {value}")]
    UnknownValue {
        /// Which field.
        field: &'static str,
        /// The number on the wire.
        value: i32,
    },
    /// A number outside its range.
    #[error("`{field}` is out of range")]
    Range {
        /// Which field.
        field: &'static str,
    },
}

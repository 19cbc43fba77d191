//! What travels between the roles: frames of jobs and frames of journal records, as protobuf (`proto/`).
//!
//! - [`encode_jobs`] and [`encode_journal`] make frames, [`decode`] reads both. A body is written once per frame and
//!   read without a copy: decoded payloads are slices of the frame and keep it alive.
//! - [`decode_partial`] keeps the good items of a frame that holds a bad one, so that one bad record costs one record.
//! - [`encode_outcome`] and [`decode_outcome`] are for done marks.
//! - [`SizeHint`] tells roughly how many bytes an item will take, for whoever fills frames and for the room that a frame is
//!   written into.
//!
//! A frame names its schema version. This build reads [`SCHEMA`] and older ones; a newer one is an error, and
//! whoever meets it must leave the frame's bytes as they are (unknown fields would be lost on re-encoding).

mod backward;
mod decode;
mod encode;
mod enums;
mod error;
mod size;

#[expect(unreachable_pub, reason = "generated code")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/postrider.v1.rs"));
}

pub use decode::{Frame, Rejected, decode, decode_outcome, decode_partial};
pub use encode::{encode_jobs, encode_journal, encode_outcome};
pub use error::{ItemError, WireError};
pub use size::SizeHint;

/// The schema version that this build writes, and the newest that it reads.
pub const SCHEMA: u32 = 1;

/// Most items that a frame may hold.
pub const MAX_ITEMS: usize = 10_000;

/// Largest frame, in bytes.
pub const MAX_BYTES: usize = 64 * 1024 * 1024;

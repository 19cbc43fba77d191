//! Envelopes that form by themselves.
//!
//! A publisher has one *lane* per queue. A call on an idle lane goes out at once, alone. Until the next beat ([`Pace`]), and
//! while the lane's window of unconfirmed frames is full, later calls gather; then the next frame takes as much as fits.
//! So a quiet system pays no delay and a busy one pays the broker once per many items. The confirm alone would not gather
//! much: a broker nearby confirms within a fraction of a millisecond.
//!
//! Guarantees: a call resolves when every frame that holds a part of it is confirmed; a failed frame fails every
//! call that has a part in it, and no other. A dropped call does not stop its frames, nor anybody else's. What waits and
//! what is unconfirmed in a lane is bounded in items and in bytes; above it [`crate::PublishError::Full`]. What must go out
//! whole or not at all [reserves](Reserved) its room in all of its lanes first.
//!
//! Not load-bearing: which calls share a frame. Order: frames of one lane start in the order of the calls; with a
//! window above 1 the confirms may overlap, so only a call made after another's `Ok` is surely behind it.

mod confirmed;
mod job;
mod journal;
mod lane;
mod outlet;
mod pace;
mod room;

use std::time::Duration;

use postrider_wire::{MAX_BYTES, MAX_ITEMS};

pub use confirmed::Confirmed;
pub use job::JobPublisher;
pub use journal::JournalPublisher;
pub use pace::Pace;
pub use room::Reserved;

/// Limits of a publisher, per queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherSettings {
    /// Most items in a frame.
    pub max_items: usize,
    /// Bytes after which a frame takes no further body; a single larger one makes a frame of its own. Deliveries of a body
    /// that the frame has join it all the same, up to `max_items`.
    pub max_bytes: usize,
    /// Records and bytes up to which what one call brings to the journal stays in one frame, so that the store takes all of it
    /// or nothing; zero where the frames of a call need not be taken together.
    pub call_items: usize,
    /// See `call_items`.
    pub call_bytes: usize,
    /// Unconfirmed frames. Those on their way together share the broker's next write to disk, so that a slow confirm
    /// does not hold back what comes after it.
    pub window: usize,
    /// Time between the beats on which frames start, unless one is full.
    pub pace: Duration,
    /// Most items that wait or are unconfirmed.
    pub queue_items: usize,
    /// Most bytes that wait or are unconfirmed.
    pub queue_bytes: usize,
}

impl GatherSettings {
    /// For the in-process broker: the store's commit, which confirms a frame, gathers by itself. A pace would only add to
    /// it, and the window has room for what comes while a commit is under way. The claim of a request's key is stored
    /// with its first record, so the store must never take that alone.
    #[must_use]
    pub fn in_process() -> Self {
        Self {
            window: 4,
            pace: Duration::ZERO,
            call_items: MAX_ITEMS,
            call_bytes: MAX_BYTES / 2,
            ..Self::default()
        }
    }
}

impl Default for GatherSettings {
    /// For a broker of its own.
    fn default() -> Self {
        Self {
            max_items: 512,
            max_bytes: 256 * 1024,
            call_items: 0,
            call_bytes: 0,
            window: 16,
            pace: Duration::from_millis(3),
            queue_items: 20_000,
            queue_bytes: 64 * 1024 * 1024,
        }
    }
}

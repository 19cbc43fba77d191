//! Room that a call has in its lanes before anything of it is published.
//!
//! What has to be published whole or not at all takes all of its room first: once it has that, it is only the broker that can
//! still fail a part of it.

use std::sync::Arc;

use super::confirmed::{Confirm, Confirmed};
use super::lane::{Chunk, Lane, size};

/// Room in lanes, and what it is for. Dropped unpublished, the room is free again.
#[must_use = "nothing is published yet"]
pub struct Reserved<T: Send + 'static>(pub(super) Vec<Room<T>>);

impl<T: Send + 'static> Reserved<T> {
    /// Publishes it. What is returned waits until all is safe, and may be dropped: what was published then still goes out.
    pub fn publish(self) -> Confirmed {
        let mut confirms = Vec::new();
        for room in self.0 {
            room.publish(&mut confirms);
        }
        Confirmed::new(Ok(confirms))
    }
}

/// Room in one lane.
pub(super) struct Room<T: Send + 'static> {
    lane: Arc<Lane<T>>,
    chunks: Vec<Chunk<T>>,
}

impl<T: Send + 'static> Room<T> {
    /// Of what the lane has counted already.
    pub(super) fn new(lane: Arc<Lane<T>>, chunks: Vec<Chunk<T>>) -> Self {
        Self { lane, chunks }
    }

    /// Publishes it, and adds a confirm for each chunk.
    pub(super) fn publish(mut self, confirms: &mut Vec<Confirm>) {
        self.lane.enqueue(std::mem::take(&mut self.chunks), confirms);
    }
}

impl<T: Send + 'static> Drop for Room<T> {
    fn drop(&mut self) {
        if !self.chunks.is_empty() {
            let (items, bytes) = size(&self.chunks);
            self.lane.free(items, bytes);
        }
    }
}

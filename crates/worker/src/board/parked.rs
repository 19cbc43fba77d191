//! Lanes that wait for room: on their host, or in the part of all slots that those not known to be fast share.
//!
//! There is a queue for each speed. What there is no room for never stands before what there is room for: a thousand lanes
//! that hang must not keep one waiting of which nothing is known yet. The speeds take turns.

use std::collections::VecDeque;

use postrider_model::EndpointId;

use super::pace::Speed;

/// Lanes of each speed in the order in which they were parked; one that was woken in vain goes to the end.
#[derive(Default)]
pub(super) struct Parked {
    fast: VecDeque<EndpointId>,
    unknown: VecDeque<EndpointId>,
    slow: VecDeque<EndpointId>,
    /// Which speed is first the next time.
    turns: usize,
}

impl Parked {
    pub(super) fn push(&mut self, endpoint: EndpointId, speed: Speed) {
        self.of(speed).push_back(endpoint);
    }

    /// The order in which the speeds may go this time: each is the first in its turn.
    pub(super) fn next_turn(&mut self) -> [Speed; 3] {
        let mut speeds = [Speed::Fast, Speed::Unknown, Speed::Slow];
        speeds.rotate_left(self.turns);
        self.turns = (self.turns + 1) % speeds.len();
        speeds
    }

    pub(super) fn pop(&mut self, speed: Speed) -> Option<EndpointId> {
        self.of(speed).pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fast.is_empty() && self.unknown.is_empty() && self.slow.is_empty()
    }

    fn of(&mut self, speed: Speed) -> &mut VecDeque<EndpointId> {
        match speed {
            Speed::Fast => &mut self.fast,
            Speed::Unknown => &mut self.unknown,
            Speed::Slow => &mut self.slow,
        }
    }
}

//! Lanes that wait for room: on their host, or in the part of all slots that those not known to be fast share.
//!
//! There is a queue for each speed. What there is no room for never stands before what there is room for: a thousand lanes
//! that hang must not keep one waiting of which nothing is known yet.

use std::collections::VecDeque;

use postrider_model::EndpointId;

use super::pace::Speed;

/// Lanes in the order in which they began to wait.
#[derive(Default)]
pub(super) struct Parked {
    fast: VecDeque<EndpointId>,
    unknown: VecDeque<EndpointId>,
    slow: VecDeque<EndpointId>,
}

impl Parked {
    pub(super) fn push(&mut self, endpoint: EndpointId, speed: Speed) {
        self.of(speed).push_back(endpoint);
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

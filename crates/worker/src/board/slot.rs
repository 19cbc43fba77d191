//! What is in flight: slots, and how many of them are held by endpoints that are not known to be fast.

use std::time::Instant;

use postrider_model::EndpointId;

use super::pace::Speed;
use super::parked::Parked;

/// One attempt's place in flight.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(super) endpoint: EndpointId,
    pub(super) host: u64,
    pub(super) started: Instant,
    pub(super) counted: Speed,
}

impl Slot {
    /// The next attempt of a run begins in this slot: the endpoint is as fast as its attempts, not as their sum.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.started = now;
    }
}

#[derive(Default)]
pub(super) struct Host {
    pub(super) in_flight: usize,
    pub(super) held: Held,
    /// Lanes with units that wait for room on this host.
    pub(super) blocked: Parked,
}

/// Attempts in flight to endpoints that are not known to be fast.
#[derive(Clone, Copy, Default)]
pub(super) struct Held {
    pub(super) slow: usize,
    pub(super) unknown: usize,
}

impl Held {
    pub(super) fn add(&mut self, speed: Speed) {
        match speed {
            Speed::Fast => {}
            Speed::Slow => self.slow += 1,
            Speed::Unknown => self.unknown += 1,
        }
    }

    pub(super) fn remove(&mut self, speed: Speed) {
        match speed {
            Speed::Fast => {}
            Speed::Slow => self.slow -= 1,
            Speed::Unknown => self.unknown -= 1,
        }
    }

    /// Whether one more may start, of `slots` in all. What was unknown when it began may turn out to be slow, so it is both
    /// together that leave half to the fast.
    pub(super) fn has_room(&self, speed: Speed, slots: usize) -> bool {
        let (quarter, half) = ((slots / 4).max(1), (slots / 2).max(1));
        match speed {
            Speed::Fast => true,
            Speed::Slow => self.slow < quarter && self.slow + self.unknown < half,
            Speed::Unknown => self.slow + self.unknown < half,
        }
    }
}

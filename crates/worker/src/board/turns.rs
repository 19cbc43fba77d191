//! Who takes turns: lanes enter their application's ring while they may start a unit, and are parked while they wait for
//! their host or among the slow.

use postrider_model::{AppId, EndpointId};

use super::Board;
use super::pace::Speed;
use super::parked::Parked;

/// Lanes of a speed that are woken when one attempt ends: one may start; some may find that they must wait for something
/// else.
const WOKEN: usize = 4;

/// Why a lane cannot start a unit now.
pub(super) enum Blocked {
    Endpoint,
    Host,
    Speed,
}

impl<U> Board<U> {
    /// Has some lanes of each speed that there is room for take turns again; all lanes when `last`: with nothing left in
    /// flight there is nobody to wake the others later.
    pub(super) fn wake(&mut self, parked: &mut Parked, has_room: impl Fn(Speed) -> bool, last: bool) {
        let count = if last { usize::MAX } else { WOKEN };
        for speed in parked.next_turn() {
            let mut woken = if last || has_room(speed) { 0 } else { count };
            while woken < count
                && let Some(endpoint) = parked.pop(speed)
            {
                let Some(lane) = self.lanes.get_mut(&endpoint) else {
                    continue;
                };
                // It may not wait any more, or for another part of the slots by now.
                let waited = std::mem::replace(&mut lane.parked, false)
                    && lane.pace.speed(self.settings.slow_after) == speed;
                self.enter_ring(endpoint);
                woken += usize::from(waited && self.lanes.get(&endpoint).is_some_and(|lane| lane.in_ring));
            }
        }
    }

    pub(super) fn blocked(&self, endpoint: EndpointId) -> Option<Blocked> {
        let lane = self.lanes.get(&endpoint)?;
        if lane.in_flight >= lane.pace.limit() {
            return Some(Blocked::Endpoint);
        }
        let speed = lane.pace.speed(self.settings.slow_after);
        if let Some(host) = self.hosts.get(&lane.host)
            && (host.in_flight >= self.settings.host_slots
                || !host.held.has_room(speed, self.settings.host_slots))
        {
            return Some(Blocked::Host);
        }
        (!self.held.has_room(speed, self.settings.slots)).then_some(Blocked::Speed)
    }

    pub(super) fn enter_ring(&mut self, endpoint: EndpointId) {
        let Some(lane) = self.lanes.get_mut(&endpoint) else {
            return;
        };
        if lane.in_ring || lane.parked || lane.units.is_empty() || lane.in_flight >= lane.pace.limit() {
            return;
        }
        lane.in_ring = true;
        let app = lane.app;
        self.apps.entry(app).or_default().ring.push_back(endpoint);
        self.enter_app(app);
    }

    pub(super) fn enter_app(&mut self, app: AppId) {
        if let Some(lanes) = self.apps.get_mut(&app)
            && !lanes.in_ring
        {
            lanes.in_ring = true;
            self.ring.push_back(app);
        }
    }
}

//! The board: which delivery is tried next. Pure: no I/O, time is passed in.
//!
//! Units (a delivery, or an `ordered` endpoint's run) wait in a lane for each endpoint. Applications take turns, and
//! within an application its endpoints do, so neither a busy tenant nor a busy endpoint delays another by more than
//! one turn. A lane is *ready* while it has units and may start one:
//!
//! - its endpoint has fewer in flight than its adaptive limit ([`pace`]);
//! - its host has fewer than the cap in flight; a slow endpoint also needs room in the quarter of the cap, and of all
//!   slots, that slow endpoints share; and both a slow one and one of which nothing is known yet need room in the half
//!   that they share, so that endpoints that hang leave half to the others even when all of them are new.
//!
//! Nothing waits long: [`Board::push`] refuses what would take over the bound, and [`Board::take_stuck`] gives back
//! what has waited for it. Both are deferred to the store by the caller.

mod lane;
mod pace;
mod parked;
mod slot;
mod stuck;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use postrider_model::{AppId, EndpointId};

use lane::Lane;
use pace::Speed;
pub(crate) use pace::Verdict;
use parked::Parked;
pub(crate) use slot::Slot;
use slot::{Held, Host};
use stuck::Returns;
use turns::Blocked;

/// Bounds of the board.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BoardSettings {
    /// Attempts in flight at once in this process.
    pub(crate) slots: usize,
    /// Attempts in flight at once to one host.
    pub(crate) host_slots: usize,
    /// Attempts in flight at once to one endpoint, at most.
    pub(crate) endpoint_slots: usize,
    /// An endpoint whose attempts take longer is slow.
    pub(crate) slow_after: Duration,
    /// What would wait longer for its endpoint is deferred.
    pub(crate) queue_max_wait: Duration,
    /// Units waiting on the board, over all lanes.
    pub(crate) queued_max: usize,
}

/// A unit that may start now. Give it back with [`Board::done`].
#[derive(Debug)]
pub(crate) struct Started<U> {
    pub(crate) unit: U,
    pub(crate) slot: Slot,
}

#[derive(Default)]
struct AppLanes {
    ring: VecDeque<EndpointId>,
    in_ring: bool,
}

pub(crate) struct Board<U> {
    settings: BoardSettings,
    lanes: HashMap<EndpointId, Lane<U>>,
    hosts: HashMap<u64, Host>,
    apps: HashMap<AppId, AppLanes>,
    ring: VecDeque<AppId>,
    /// Slow and unknown lanes with units that wait for room in their part of all slots.
    held_back: Parked,
    in_flight: usize,
    held: Held,
    /// Units on the lanes, and places kept for more.
    queued: usize,
    /// Places kept for units that are about to come.
    kept: HashMap<EndpointId, usize>,
    /// Every unit that was queued of late, those that have started too, with its time.
    arrivals: VecDeque<(Instant, EndpointId)>,
    returns: Returns,
    forgot_at: Option<Instant>,
}

/// Shortest and longest time that a unit is told to wait.
const WAIT_MIN: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(60);

impl<U> Board<U> {
    pub(crate) fn new(settings: BoardSettings) -> Self {
        Self {
            settings,
            lanes: HashMap::new(),
            hosts: HashMap::new(),
            apps: HashMap::new(),
            ring: VecDeque::new(),
            held_back: Parked::default(),
            in_flight: 0,
            held: Held::default(),
            queued: 0,
            kept: HashMap::new(),
            arrivals: VecDeque::new(),
            returns: Returns::default(),
            forgot_at: None,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// Queues a unit for its endpoint, or gives it back with the time after which it may be tried.
    pub(crate) fn push(
        &mut self,
        app: AppId,
        endpoint: EndpointId,
        host: u64,
        unit: U,
        now: Instant,
    ) -> Result<(), (U, Duration)> {
        match self.room(endpoint, now) {
            Ok(()) => {
                self.queue(app, endpoint, host, unit, now);
                Ok(())
            }
            Err(wait) => Err((unit, wait)),
        }
    }

    /// Keeps a place for a unit, or tells how long it should wait. Follow with [`Self::push_kept`] or
    /// [`Self::release`].
    pub(crate) fn reserve(&mut self, endpoint: EndpointId, now: Instant) -> Result<(), Duration> {
        self.room(endpoint, now)?;
        *self.kept.entry(endpoint).or_default() += 1;
        self.queued += 1;
        Ok(())
    }

    /// Gives up a place that was kept.
    pub(crate) fn release(&mut self, endpoint: EndpointId) {
        let Entry::Occupied(mut kept) = self.kept.entry(endpoint) else {
            return;
        };
        *kept.get_mut() -= 1;
        if *kept.get() == 0 {
            kept.remove();
        }
        self.queued -= 1;
    }

    /// Queues a unit in the place that was kept for it.
    pub(crate) fn push_kept(&mut self, app: AppId, endpoint: EndpointId, host: u64, unit: U, now: Instant) {
        self.release(endpoint);
        self.queue(app, endpoint, host, unit, now);
    }

    /// Whether one more may queue for this endpoint; otherwise how long it should wait.
    fn room(&self, endpoint: EndpointId, now: Instant) -> Result<(), Duration> {
        let kept = self.kept.get(&endpoint).copied().unwrap_or_default();
        let lane = self.lanes.get(&endpoint);
        let wait = lane.map_or(Duration::ZERO, |lane| lane.expected_wait(kept, now));
        if wait > self.settings.queue_max_wait || self.queued >= self.settings.queued_max {
            return Err(wait.clamp(WAIT_MIN, WAIT_MAX));
        }
        Ok(())
    }

    fn queue(&mut self, app: AppId, endpoint: EndpointId, host: u64, unit: U, now: Instant) {
        let slots = self.settings.endpoint_slots;
        let lane = self
            .lanes
            .entry(endpoint)
            .or_insert_with(|| Lane::new(app, host, slots, now));
        if lane.in_flight == 0 {
            // An endpoint may have moved to another host; the lane follows once nothing is out.
            lane.host = host;
        }
        lane.units.push_back((now, unit));
        self.arrivals.push_back((now, endpoint));
        self.queued += 1;
        self.enter_ring(endpoint);
    }

    /// The next unit whose turn it is, with its slot; `None` when none may start.
    pub(crate) fn start(&mut self, now: Instant) -> Option<Started<U>> {
        while self.in_flight < self.settings.slots {
            let app = self.ring.pop_front()?;
            let Some(lanes) = self.apps.get_mut(&app) else {
                continue;
            };
            lanes.in_ring = false;
            let Some(endpoint) = lanes.ring.pop_front() else {
                continue;
            };
            if let Some(lane) = self.lanes.get_mut(&endpoint) {
                lane.in_ring = false;
            }
            let started = self.start_lane(endpoint, now);
            if started.is_some() {
                self.enter_ring(endpoint);
            }
            if self.apps.get(&app).is_some_and(|lanes| lanes.ring.is_empty()) {
                self.apps.remove(&app);
            } else {
                self.enter_app(app);
            }
            if started.is_some() {
                return started;
            }
        }
        None
    }

    fn start_lane(&mut self, endpoint: EndpointId, now: Instant) -> Option<Started<U>> {
        if let Some(lane) = self.lanes.get_mut(&endpoint).filter(|lane| lane.in_flight == 0) {
            lane.pace.begin_again(self.settings.slow_after, now);
        }
        let blocked = self.blocked(endpoint);
        let lane = self.lanes.get_mut(&endpoint)?;
        let speed = lane.pace.speed(self.settings.slow_after);
        let parked = match blocked {
            None => None,
            Some(Blocked::Endpoint) => return None,
            Some(Blocked::Host) => Some(&mut self.hosts.entry(lane.host).or_default().blocked),
            Some(Blocked::Speed) => Some(&mut self.held_back),
        };
        if let Some(parked) = parked {
            lane.parked = true;
            parked.push(endpoint, speed);
            return None;
        }
        let (_, unit) = lane.units.pop_front()?;
        if lane.in_flight == 0 {
            lane.progress_at = now;
        }
        lane.in_flight += 1;
        let host = self.hosts.entry(lane.host).or_default();
        host.in_flight += 1;
        host.held.add(speed);
        self.held.add(speed);
        self.in_flight += 1;
        self.queued -= 1;
        self.returns.started += 1;
        let slot = Slot {
            endpoint,
            host: lane.host,
            started: now,
            counted: speed,
        };
        Some(Started { unit, slot })
    }

    /// Counts a running attempt as slow: it has run for longer than the bound.
    pub(crate) fn mark_slow(&mut self, slot: &mut Slot) {
        let before = std::mem::replace(&mut slot.counted, Speed::Slow);
        if before == Speed::Slow {
            return;
        }
        self.held.remove(before);
        self.held.add(Speed::Slow);
        if let Some(host) = self.hosts.get_mut(&slot.host) {
            host.held.remove(before);
            host.held.add(Speed::Slow);
        }
        if let Some(lane) = self.lanes.get_mut(&slot.endpoint) {
            lane.pace.saw_slow(self.settings.slow_after);
        }
    }

    /// Ends an attempt and learns from it.
    pub(crate) fn done(&mut self, slot: &Slot, verdict: Verdict, now: Instant) {
        self.in_flight -= 1;
        self.held.remove(slot.counted);
        if let Some(lane) = self.lanes.get_mut(&slot.endpoint) {
            lane.in_flight -= 1;
            lane.progress_at = now;
            let before = lane.pace.speed(self.settings.slow_after);
            lane.pace
                .learn(verdict, now.saturating_duration_since(slot.started), now);
            // What it waits for may be another part of the slots now, or none.
            lane.parked &= lane.pace.speed(self.settings.slow_after) == before;
        }
        if let Some(host) = self.hosts.get_mut(&slot.host) {
            host.in_flight -= 1;
            host.held.remove(slot.counted);
            let mut waiting = std::mem::take(&mut host.blocked);
            let (held, slots) = (host.held, self.settings.host_slots);
            let last = host.in_flight == 0;
            self.wake(&mut waiting, |speed| held.has_room(speed, slots), last);
            match self.hosts.get_mut(&slot.host) {
                Some(_) if last => drop(self.hosts.remove(&slot.host)),
                Some(host) => host.blocked = waiting,
                None => {}
            }
        }
        if slot.counted != Speed::Fast {
            let mut waiting = std::mem::take(&mut self.held_back);
            let (held, slots) = (self.held, self.settings.slots);
            let last = held.slow + held.unknown == 0;
            self.wake(&mut waiting, |speed| held.has_room(speed, slots), last);
            self.held_back = waiting;
        }
        self.enter_ring(slot.endpoint);
    }
}

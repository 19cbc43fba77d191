//! The board: which delivery is tried next. Pure: no I/O, time is passed in.
//!
//! Units (a delivery, or an `ordered` endpoint's run) wait in a lane for each endpoint. Applications take turns, and
//! within an application its endpoints do, so neither a busy tenant nor a busy endpoint delays another by more than
//! one turn. A lane is *ready* while it has units and may start one:
//!
//! - its endpoint has fewer in flight than its adaptive limit ([`pace`]);
//! - its host has fewer than the cap in flight; a slow endpoint also needs room in the quarter of the cap, and of all
//!   slots, that slow endpoints share; and so does one of which nothing is known yet, in a quarter of its own, so that
//!   endpoints that hang leave half to the others even when all of them are new.
//!
//! Nothing waits long: [`Board::push`] refuses what would take over the bound, and [`Board::take_stuck`] gives back
//! what has waited for it. Both are deferred to the store by the caller.

mod pace;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use postrider_model::{AppId, EndpointId};

pub(crate) use pace::Verdict;
use pace::{Pace, Speed};

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

/// One attempt's place in flight.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    endpoint: EndpointId,
    host: u64,
    started: Instant,
    counted: Speed,
}

impl Slot {
    /// The next attempt of a run begins in this slot: the endpoint is as fast as its attempts, not as their sum.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.started = now;
    }
}

struct Lane<U> {
    app: AppId,
    host: u64,
    units: VecDeque<(Instant, U)>,
    in_flight: usize,
    pace: Pace,
    in_ring: bool,
    /// It waits for room on its host, or among the slow; no turn is taken meanwhile.
    parked: bool,
    /// When the last attempt ended, or the first one began: an estimate of latency while none has ended.
    progress_at: Instant,
}

#[derive(Default)]
struct Host {
    in_flight: usize,
    held: Held,
    /// Lanes with units that wait for room on this host.
    blocked: VecDeque<EndpointId>,
}

/// Attempts in flight to endpoints that are not known to be fast.
#[derive(Clone, Copy, Default)]
struct Held {
    slow: usize,
    unknown: usize,
}

impl Held {
    fn add(&mut self, speed: Speed) {
        match speed {
            Speed::Fast => {}
            Speed::Slow => self.slow += 1,
            Speed::Unknown => self.unknown += 1,
        }
    }

    fn remove(&mut self, speed: Speed) {
        match speed {
            Speed::Fast => {}
            Speed::Slow => self.slow -= 1,
            Speed::Unknown => self.unknown -= 1,
        }
    }

    /// Whether one more may start, of `slots` in all. What was unknown when it began may turn out to be slow, so both
    /// together are bounded too.
    fn has_room(&self, speed: Speed, slots: usize) -> bool {
        let quarter = (slots / 4).max(1);
        match speed {
            Speed::Fast => true,
            Speed::Slow => self.slow < quarter,
            Speed::Unknown => self.unknown < quarter && self.slow + self.unknown < (slots / 2).max(1),
        }
    }
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
    /// Slow and unknown lanes with units that wait for room in their quarter of all slots.
    held_back: VecDeque<EndpointId>,
    in_flight: usize,
    held: Held,
    queued: usize,
}

/// Why a lane cannot start a unit now.
enum Blocked {
    Endpoint,
    Host,
    Speed,
}

/// Longest time that a unit is told to wait.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Lanes that are woken when one attempt ends: one may start; some may find that they must wait for something else.
const WOKEN: usize = 4;

impl<U> Board<U> {
    pub(crate) fn new(settings: BoardSettings) -> Self {
        Self {
            settings,
            lanes: HashMap::new(),
            hosts: HashMap::new(),
            apps: HashMap::new(),
            ring: VecDeque::new(),
            held_back: VecDeque::new(),
            in_flight: 0,
            held: Held::default(),
            queued: 0,
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
        let settings = self.settings;
        let lane = self.lanes.entry(endpoint).or_insert_with(|| Lane {
            app,
            host,
            units: VecDeque::new(),
            in_flight: 0,
            pace: Pace::new(settings.endpoint_slots),
            in_ring: false,
            parked: false,
            progress_at: now,
        });
        let wait = lane.expected_wait(now);
        if wait > settings.queue_max_wait || self.queued >= settings.queued_max {
            return Err((unit, wait.clamp(Duration::from_millis(50), WAIT_MAX)));
        }
        if lane.in_flight == 0 {
            // An endpoint may have moved to another host; the lane follows once nothing is out.
            lane.host = host;
        }
        lane.units.push_back((now, unit));
        self.queued += 1;
        self.enter_ring(endpoint);
        Ok(())
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
        match self.blocked(endpoint) {
            None => {}
            Some(Blocked::Endpoint) => return None,
            Some(Blocked::Host) => {
                let lane = self.lanes.get_mut(&endpoint)?;
                lane.parked = true;
                let host = lane.host;
                self.hosts.entry(host).or_default().blocked.push_back(endpoint);
                return None;
            }
            Some(Blocked::Speed) => {
                self.lanes.get_mut(&endpoint)?.parked = true;
                self.held_back.push_back(endpoint);
                return None;
            }
        }
        let lane = self.lanes.get_mut(&endpoint)?;
        let (_, unit) = lane.units.pop_front()?;
        if lane.in_flight == 0 {
            lane.progress_at = now;
        }
        lane.in_flight += 1;
        let speed = lane.pace.speed(self.settings.slow_after);
        let host = self.hosts.entry(lane.host).or_default();
        host.in_flight += 1;
        host.held.add(speed);
        self.held.add(speed);
        self.in_flight += 1;
        self.queued -= 1;
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
            lane.pace
                .learn(verdict, now.saturating_duration_since(slot.started), now);
            // The first attempt to end tells whether it has to keep to a quarter at all.
            lane.parked &= slot.counted != Speed::Unknown;
        }
        if let Some(host) = self.hosts.get_mut(&slot.host) {
            host.in_flight -= 1;
            host.held.remove(slot.counted);
            let mut waiting = std::mem::take(&mut host.blocked);
            // With nothing left in flight there is nobody to wake the others later.
            let last = host.in_flight == 0;
            self.wake(&mut waiting, if last { usize::MAX } else { WOKEN });
            match self.hosts.get_mut(&slot.host) {
                Some(_) if last => drop(self.hosts.remove(&slot.host)),
                Some(host) => host.blocked = waiting,
                None => {}
            }
        }
        if slot.counted != Speed::Fast {
            let mut waiting = std::mem::take(&mut self.held_back);
            let last = self.held.slow + self.held.unknown == 0;
            self.wake(&mut waiting, if last { usize::MAX } else { WOKEN });
            self.held_back = waiting;
        }
        self.enter_ring(slot.endpoint);
        self.forget_if_idle(slot.endpoint, now);
    }

    /// Has parked lanes take turns again, until `count` of them do.
    fn wake(&mut self, parked: &mut VecDeque<EndpointId>, count: usize) {
        let mut woken = 0;
        while woken < count
            && let Some(endpoint) = parked.pop_front()
        {
            let Some(lane) = self.lanes.get_mut(&endpoint) else {
                continue;
            };
            lane.parked = false;
            self.enter_ring(endpoint);
            woken += usize::from(self.lanes.get(&endpoint).is_some_and(|lane| lane.in_ring));
        }
    }

    /// Takes back units that have waited for longer than the bound: their endpoint, its host or the whole worker is
    /// busy, and what they came with keeps others in the broker.
    ///
    /// Each comes with the time after which it may be tried, longer the longer its endpoint has taken nothing, so that
    /// what waits for an endpoint that hangs does not come back each second.
    pub(crate) fn take_stuck(&mut self, now: Instant) -> Vec<(U, Duration)> {
        let bound = self.settings.queue_max_wait;
        let mut stuck = Vec::new();
        let late: Vec<EndpointId> = self
            .lanes
            .iter()
            .filter(|(_, lane)| {
                lane.units
                    .front()
                    .is_some_and(|(at, _)| now.saturating_duration_since(*at) > bound)
            })
            .map(|(endpoint, _)| *endpoint)
            .collect();
        for endpoint in late {
            let Some(lane) = self.lanes.get_mut(&endpoint) else {
                continue;
            };
            let wait = lane.expected_wait(now).clamp(bound, WAIT_MAX);
            while lane
                .units
                .front()
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) > bound)
            {
                if let Some((_, unit)) = lane.units.pop_front() {
                    stuck.push((unit, wait));
                    self.queued -= 1;
                }
            }
        }
        self.lanes
            .retain(|_, lane| lane.in_flight > 0 || !lane.units.is_empty() || !lane.pace.is_stale(now));
        stuck
    }

    /// Takes back everything that has not started: the process drains.
    pub(crate) fn take_all(&mut self) -> Vec<U> {
        self.queued = 0;
        self.lanes
            .values_mut()
            .flat_map(|lane| lane.units.drain(..))
            .map(|(_, unit)| unit)
            .collect()
    }

    fn blocked(&self, endpoint: EndpointId) -> Option<Blocked> {
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

    fn enter_ring(&mut self, endpoint: EndpointId) {
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

    fn enter_app(&mut self, app: AppId) {
        if let Some(lanes) = self.apps.get_mut(&app)
            && !lanes.in_ring
        {
            lanes.in_ring = true;
            self.ring.push_back(app);
        }
    }

    fn forget_if_idle(&mut self, endpoint: EndpointId, now: Instant) {
        let idle = self
            .lanes
            .get(&endpoint)
            .is_some_and(|lane| lane.in_flight == 0 && lane.units.is_empty() && lane.pace.is_stale(now));
        if idle {
            self.lanes.remove(&endpoint);
        }
    }
}

impl<U> Lane<U> {
    /// How long a unit queued now would wait: what is ahead of it, at the endpoint's pace.
    fn expected_wait(&self, now: Instant) -> Duration {
        // What is first has waited for its turn already; what is queued now will wait no less.
        let turn = self
            .units
            .front()
            .map_or(Duration::ZERO, |(at, _)| now.saturating_duration_since(*at));
        self.wait_for_endpoint(now).max(turn)
    }

    fn wait_for_endpoint(&self, now: Instant) -> Duration {
        let ahead = (self.units.len() + 1 + self.in_flight).saturating_sub(self.pace.limit());
        if ahead == 0 {
            return Duration::ZERO;
        }
        let stalled = if self.in_flight > 0 {
            now.saturating_duration_since(self.progress_at)
        } else {
            Duration::ZERO
        };
        let latency = self.pace.latency().max(stalled);
        let rounds = ahead.div_ceil(self.pace.limit());
        latency.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX))
    }
}

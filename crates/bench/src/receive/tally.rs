//! What arrived.

use crate::figures::{Latencies, Received};
use crate::payload::Stamp;

/// Groups of endpoints with counts of their own.
pub(crate) const GROUPS: usize = 4;
/// Deliveries that are told apart in one run: a bit each, 64 MiB at most.
const SEEN_MAX: u64 = 512 * 1024 * 1024;

pub(crate) struct Tally {
    /// Whether `storm` endpoints fail.
    pub(crate) storm: bool,
    /// Endpoints that one message can go to.
    fan_out: u64,
    seen: Vec<u64>,
    groups: [Group; GROUPS],
}

struct Group {
    so_far: Received,
    latencies: Latencies,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            so_far: Received::default(),
            latencies: Latencies::new(),
        }
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            storm: false,
            fan_out: 1,
            seen: Vec::new(),
            groups: Default::default(),
        }
    }
}

impl Tally {
    /// Forgets everything but the switch. With `fan_out` endpoints to each message, the numbers of those endpoints are to
    /// be different modulo `fan_out`.
    pub(crate) fn reset(&mut self, fan_out: u64) {
        *self = Self {
            storm: self.storm,
            fan_out: fan_out.max(1),
            ..Self::default()
        };
    }

    /// Notes one request.
    pub(crate) fn count(
        &mut self,
        group: usize,
        endpoint: u64,
        stamp: Option<Stamp>,
        arrived_ns: u64,
        success: bool,
    ) {
        let is_new = success.then(|| stamp.map(|stamp| (stamp, self.mark(stamp.number, endpoint))));
        let group = &mut self.groups[group];
        group.so_far.requests += 1;
        match is_new.flatten() {
            Some((stamp, true)) => {
                group.so_far.delivered += 1;
                group.so_far.last_ns = arrived_ns;
                group.latencies.record(arrived_ns.saturating_sub(stamp.sent_ns));
            }
            Some((_, false)) => group.so_far.duplicates += 1,
            None => {}
        }
    }

    /// Notes that a request had no signature.
    pub(crate) fn unsigned(&mut self, group: usize) {
        self.groups[group].so_far.unsigned += 1;
    }

    /// The groups without their latencies.
    pub(crate) fn counts(&self) -> Vec<Received> {
        self.groups.iter().map(|group| group.so_far.clone()).collect()
    }

    /// The groups.
    pub(crate) fn stats(&self) -> Vec<Received> {
        let stats = |group: &Group| Received {
            latency: group.latencies.summary(),
            ..group.so_far.clone()
        };
        self.groups.iter().map(stats).collect()
    }

    /// Whether this delivery is new; those beyond the limit all are.
    fn mark(&mut self, number: u64, endpoint: u64) -> bool {
        let index = number
            .saturating_mul(self.fan_out)
            .saturating_add(endpoint % self.fan_out);
        if index >= SEEN_MAX {
            return true;
        }
        let Ok(word) = usize::try_from(index / 64) else {
            return true;
        };
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        let bit = 1 << (index % 64);
        let is_new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_and_failures_are_told_apart() {
        let mut tally = Tally::default();
        tally.reset(2);
        let stamp = |number| Some(Stamp { sent_ns: 5, number });
        tally.count(0, 0, stamp(3), 10, false);
        tally.count(0, 0, stamp(3), 20, true);
        tally.count(0, 1, stamp(3), 30, true);
        tally.count(0, 1, stamp(3), 40, true);
        tally.count(1, 0, stamp(4), 50, true);
        let stats = tally.stats();
        assert_eq!(
            (stats[0].requests, stats[0].delivered, stats[0].duplicates),
            (4, 2, 1)
        );
        assert_eq!(stats[0].last_ns, 30);
        assert_eq!(stats[1].delivered, 1);
    }
}

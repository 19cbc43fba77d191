//! Done marks, bounded in bytes: the oldest go first. Losing one costs at most a duplicate delivery.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use postrider_model::DeliveryId;

use crate::DONE_MARK_TTL;
use crate::gcra::micros;

/// What a mark costs beside its bytes: key, map slot and queue slot, roughly.
const OVERHEAD: usize = 128;

/// A delivery and its run.
pub(crate) type Key = (DeliveryId, u32);

/// One shard of marks. All live equally long, so the queue is in order of expiry.
pub(crate) struct Marks {
    map: HashMap<Key, (u64, Bytes)>,
    queue: VecDeque<(u64, Key)>,
    bytes: usize,
    bytes_max: usize,
}

impl Marks {
    /// At most `bytes_max` bytes, overhead counted.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            map: HashMap::new(),
            queue: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// The mark, unless it expired.
    pub(crate) fn get(&self, key: &Key, now: u64) -> Option<Bytes> {
        self.map
            .get(key)
            .filter(|(expires, _)| *expires > now)
            .map(|(_, mark)| mark.clone())
    }

    /// Keeps a copy of `mark`. The first mark of a key stands until it expires.
    pub(crate) fn set(&mut self, key: Key, mark: &Bytes, now: u64) {
        self.drop_expired(now);
        match self.map.get(&key) {
            Some((expires, _)) if *expires > now => return,
            Some((_, old)) => self.bytes -= old.len() + OVERHEAD,
            None => {}
        }
        let expires = now.saturating_add(micros(DONE_MARK_TTL));
        // A copy: the caller's bytes may be a slice that keeps a whole envelope alive.
        self.map.insert(key, (expires, Bytes::copy_from_slice(mark)));
        self.queue.push_back((expires, key));
        self.bytes += mark.len() + OVERHEAD;
        while self.bytes > self.bytes_max {
            self.drop_oldest();
        }
    }

    fn drop_expired(&mut self, now: u64) {
        // Two for each one set, so that expired ones never pile up and no call pays for all.
        for _ in 0..2 {
            if self.queue.front().is_some_and(|(expires, _)| *expires <= now) {
                self.drop_oldest();
            }
        }
    }

    fn drop_oldest(&mut self) {
        let Some((expires, key)) = self.queue.pop_front() else {
            return;
        };
        // A key that was set again after it expired has a later place in the queue.
        if let Entry::Occupied(slot) = self.map.entry(key)
            && slot.get().0 == expires
        {
            self.bytes -= slot.remove().1.len() + OVERHEAD;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u128) -> Key {
        (DeliveryId::from_uuid(uuid::Uuid::from_u128(number)), 0)
    }

    #[test]
    fn the_oldest_go_when_the_bytes_are_used_up() {
        let mut marks = Marks::new(10 * (OVERHEAD + 100));
        for number in 0..1_000 {
            marks.set(key(number), &Bytes::from(vec![7; 100]), 0);
            assert!(marks.bytes <= marks.bytes_max);
        }
        assert_eq!(marks.map.len(), 10);
        assert_eq!(marks.queue.len(), 10);
        assert!(marks.get(&key(989), 0).is_none());
        assert!(marks.get(&key(990), 0).is_some());
    }

    #[test]
    fn expired_ones_are_swept_by_later_ones() {
        let mut marks = Marks::new(1 << 20);
        for number in 0..100 {
            marks.set(key(number), &Bytes::from_static(b"x"), 0);
        }
        let later = micros(DONE_MARK_TTL);
        assert!(marks.get(&key(1), later - 1).is_some());
        assert!(marks.get(&key(1), later).is_none());
        for number in 1_000..1_050 {
            marks.set(key(number), &Bytes::from_static(b"x"), later);
        }
        assert_eq!(marks.map.len(), 50);
        assert_eq!(marks.bytes, 50 * (OVERHEAD + 1));
    }
}

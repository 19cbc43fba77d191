//! A bounded map whose entries expire: sharded, swept a little with every write, never all at once.
//!
//! Each key that a shard holds is in its queue exactly once. A write looks at a few of the oldest: what expired
//! goes, what lives returns to the end. A full shard drops what it looks at, alive or not: all that is kept here may
//! be lost (see the crate's documentation). Where it matters, a shard keeps what must not be dropped yet, which takes it
//! above its limit, and knows which keys it [may have forgotten](crate::forgotten).

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};

use parking_lot::{Mutex, MutexGuard};

use crate::forgotten::Forgotten;

/// Entries that a write looks at to find expired ones; above 1, so that the sweep outruns the growth.
const SWEPT: usize = 2;

/// The shards.
pub(crate) struct Expiring<K, V> {
    shards: Box<[Mutex<Shard<K, V>>]>,
    hasher: RandomState,
}

/// One shard; times in microseconds.
pub(crate) struct Shard<K, V> {
    map: HashMap<K, Entry<V>>,
    queue: VecDeque<K>,
    limit: usize,
    /// What is not dropped now.
    keeps: fn(&V, u64) -> bool,
    /// What was dropped alive, where that is asked for.
    forgotten: Option<Forgotten>,
}

struct Entry<V> {
    value: V,
    expires: u64,
}

impl<K: Eq + Hash + Copy, V> Expiring<K, V> {
    /// `shards` shards of at most `limit` entries each.
    pub(crate) fn new(shards: usize, limit: usize) -> Self {
        Self::with(shards, limit, |_, _| false, || None)
    }

    /// The same, with shards that drop nothing that `keeps` says true of at that time, and know what they may have
    /// forgotten.
    pub(crate) fn remembering(shards: usize, limit: usize, keeps: fn(&V, u64) -> bool) -> Self {
        Self::with(shards, limit, keeps, || Some(Forgotten::default()))
    }

    fn with(
        shards: usize,
        limit: usize,
        keeps: fn(&V, u64) -> bool,
        forgotten: fn() -> Option<Forgotten>,
    ) -> Self {
        let shard = || {
            Mutex::new(Shard {
                map: HashMap::new(),
                queue: VecDeque::new(),
                limit: limit.max(1),
                keeps,
                forgotten: forgotten(),
            })
        };
        Self {
            shards: (0..shards.max(1)).map(|_| shard()).collect(),
            hasher: RandomState::new(),
        }
    }

    /// How many live values are so. Locks one shard after the other and looks at everything in it.
    pub(crate) fn count(&self, now: u64, is: impl Fn(&V) -> bool) -> u64 {
        let live = |entry: &&Entry<V>| entry.expires > now && is(&entry.value);
        self.shards
            .iter()
            .map(|shard| shard.lock().map.values().filter(live).count() as u64)
            .sum()
    }

    /// Locks the shard of `by`; keys of one `by` are always in one shard.
    pub(crate) fn lock(&self, by: &impl Hash) -> MutexGuard<'_, Shard<K, V>> {
        let shards = u64::try_from(self.shards.len()).unwrap_or(1);
        let index = usize::try_from(self.hasher.hash_one(by) % shards).unwrap_or(0);
        self.shards[index].lock()
    }
}

impl<K: Eq + Hash + Copy, V> Shard<K, V> {
    /// The value, unless it expired.
    pub(crate) fn get(&self, key: &K, now: u64) -> Option<&V> {
        self.map
            .get(key)
            .filter(|entry| entry.expires > now)
            .map(|entry| &entry.value)
    }

    /// Sets the value until `expires`; at or before `now` removes it.
    pub(crate) fn put(&mut self, key: K, value: V, expires: u64, now: u64) {
        if let Some(entry) = self.map.get_mut(&key) {
            *entry = Entry { value, expires };
        } else if expires > now {
            self.map.insert(key, Entry { value, expires });
            self.queue.push_back(key);
        }
        self.sweep(now);
    }

    /// The value, unless it expired; to be changed, while its time stays.
    pub(crate) fn get_mut(&mut self, key: &K, now: u64) -> Option<&mut V> {
        self.map
            .get_mut(key)
            .filter(|entry| entry.expires > now)
            .map(|entry| &mut entry.value)
    }

    /// Lets the key expire; the sweep takes it away.
    pub(crate) fn remove(&mut self, key: &K) {
        if let Some(entry) = self.map.get_mut(key) {
            entry.expires = 0;
        }
    }

    /// Whether the key may have been put here and be missing, though it has not expired.
    pub(crate) fn may_have_forgotten(&self, key: &K, now: u64) -> bool {
        let forgotten = self.forgotten.as_ref();
        forgotten.is_some_and(|forgotten| forgotten.may_have(self.map.hasher().hash_one(key), now))
    }

    fn sweep(&mut self, now: u64) {
        for _ in 0..SWEPT {
            let Some(key) = self.queue.pop_front() else { return };
            let entry = self.map.get(&key);
            let drops =
                self.map.len() > self.limit && entry.is_none_or(|entry| !(self.keeps)(&entry.value, now));
            let expires = entry.map_or(0, |entry| entry.expires);
            if drops || expires <= now {
                self.map.remove(&key);
                if let Some(forgotten) = self.forgotten.as_mut().filter(|_| expires > now) {
                    forgotten.add(self.map.hasher().hash_one(key), expires, now);
                }
            } else {
                self.queue.push_back(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expired_entries_go_away_without_being_asked_for() {
        let map = Expiring::remembering(1, 1_000, |_, _| false);
        for key in 0..500_u64 {
            map.lock(&0).put(key, key, 10, 0);
        }
        for key in 1_000..1_300_u64 {
            map.lock(&0).put(key, key, 100, 20);
        }
        let shard = map.lock(&0);
        assert!(
            (0..1_300).all(|key| !shard.may_have_forgotten(&key, 20)),
            "nothing was dropped alive"
        );
        assert!(shard.map.len() <= 301, "{} entries", shard.map.len());
        assert_eq!(shard.map.len(), shard.queue.len());
        assert_eq!(shard.get(&3, 20), None);
        assert_eq!(shard.get(&1_299, 20), Some(&1_299));
    }

    #[test]
    fn a_full_shard_drops_an_entry_and_tells_so_while_it_would_live() {
        let map = Expiring::remembering(1, 8, |(), _| false);
        for key in 0..100_u64 {
            map.lock(&0).put(key, (), 1_000 + key, 0);
            let shard = map.lock(&0);
            assert!(shard.map.len() <= 8);
            assert_eq!(shard.map.len(), shard.queue.len());
            let missing: Vec<u64> = (0..=key).filter(|key| shard.get(key, 0).is_none()).collect();
            assert!(
                missing.iter().all(|key| shard.may_have_forgotten(key, 0)),
                "{key}"
            );
            assert!(!shard.may_have_forgotten(&1_000, 0), "it never was here");
        }
        let shard = map.lock(&0);
        assert!(shard.get(&99, 0).is_some());
        let missing = (0..100).find(|key| shard.get(key, 0).is_none());
        let missing = missing.expect("most of them");
        assert!(shard.may_have_forgotten(&missing, 999) && !shard.may_have_forgotten(&missing, 1_100));
    }

    #[test]
    fn a_full_shard_keeps_what_it_must_for_so_long() {
        let map = Expiring::remembering(1, 8, |until, now| *until > now);
        let mut shard = map.lock(&0);
        for key in 0..100_u64 {
            shard.put(key, 50, 1_000, 10);
        }
        assert!((0..100).all(|key| shard.get(&key, 10).is_some()));
        for key in 100..300_u64 {
            shard.put(key, 0, 1_000, 60);
        }
        assert!(shard.map.len() <= 9, "{} entries", shard.map.len());
        assert_eq!(shard.map.len(), shard.queue.len());
        assert!((0..100).all(|key| shard.get(&key, 60).is_none() && shard.may_have_forgotten(&key, 60)));
    }

    #[test]
    fn a_removed_key_can_be_set_again() {
        let map = Expiring::new(1, 8);
        let mut shard = map.lock(&0);
        shard.put(1, 'a', 10, 0);
        shard.remove(&1);
        assert_eq!(shard.get(&1, 0), None);
        shard.put(1, 'b', 10, 0);
        assert_eq!(shard.get(&1, 0), Some(&'b'));
        assert_eq!(shard.map.len(), shard.queue.len());
    }
}

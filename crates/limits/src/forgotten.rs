//! Which keys were dropped before they expired, as far as is needed to say of most keys that they were not.
//!
//! Bloom filters, one after the other: each lives until the last of its keys would have expired. The answer for a key
//! that was dropped is always *maybe*, and for about one in a hundred others for each filter that is full. When more were
//! dropped than the filters hold, it is *maybe* for all.

use fastbloom::BloomFilter;

/// Keys of one filter, with ten bits and seven hashes for each.
const KEYS_MAX: usize = 1 << 20;
const BITS: usize = KEYS_MAX * 10;
const HASHES: u32 = 7;
/// Filters of a shard at once: 5 MiB together, made when they are needed.
const FILTERS_MAX: usize = 4;

/// Times in microseconds.
#[derive(Default)]
pub(crate) struct Forgotten {
    filters: Vec<Filter>,
    /// When the last of what found no room would have expired.
    all_until: u64,
}

struct Filter {
    hashes: BloomFilter,
    keys: usize,
    until: u64,
}

impl Forgotten {
    /// Notes a key, by a hash of all its bits, until it would have expired.
    pub(crate) fn add(&mut self, hash: u64, expires: u64, now: u64) {
        self.filters.retain(|filter| filter.until > now);
        if self.filters.last().is_none_or(|filter| filter.keys >= KEYS_MAX) {
            if self.filters.len() >= FILTERS_MAX {
                self.all_until = self.all_until.max(expires);
                return;
            }
            self.filters.push(Filter {
                // What comes here is hashed already; the seed is for what is not.
                hashes: BloomFilter::with_num_bits(BITS).seed(&0).hashes(HASHES),
                keys: 0,
                until: 0,
            });
        }
        if let Some(filter) = self.filters.last_mut() {
            filter.hashes.insert_hash(hash);
            filter.keys += 1;
            filter.until = filter.until.max(expires);
        }
    }

    /// Whether the key may be one of those that were dropped and have not expired.
    pub(crate) fn may_have(&self, hash: u64, now: u64) -> bool {
        let has = |filter: &Filter| filter.until > now && filter.hashes.contains_hash(hash);
        self.all_until > now || self.filters.iter().any(has)
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher as _, RandomState};

    use super::*;

    #[test]
    fn what_was_dropped_is_known_and_little_else() {
        let hasher = RandomState::new();
        let hash = |key: usize| hasher.hash_one(key);
        let mut forgotten = Forgotten::default();
        for key in 0..KEYS_MAX {
            forgotten.add(hash(key), 100, 0);
        }
        assert!((0..KEYS_MAX).all(|key| forgotten.may_have(hash(key), 99)));
        let others = (KEYS_MAX..2 * KEYS_MAX).filter(|key| forgotten.may_have(hash(*key), 99));
        let wrong = others.count();
        assert!(wrong < KEYS_MAX / 50, "{wrong} of {KEYS_MAX}");
        assert!(
            (0..1_000).all(|key| !forgotten.may_have(hash(key), 100)),
            "expired"
        );
    }

    #[test]
    fn a_filter_stays_as_long_as_its_last_key_and_gives_its_room_back() {
        let mut forgotten = Forgotten::default();
        for hash in 0..(FILTERS_MAX * KEYS_MAX) as u64 {
            forgotten.add(hash, 10, 0);
        }
        assert!(!forgotten.may_have(u64::MAX, 0) && forgotten.all_until == 0);
        forgotten.add(7, 20, 0);
        assert!(
            forgotten.may_have(u64::MAX, 19),
            "there was no room: it may be any key"
        );
        forgotten.add(8, 30, 15);
        assert_eq!(forgotten.filters.len(), 1);
        assert!(forgotten.may_have(8, 29) && !forgotten.may_have(8, 30));
        assert!(!forgotten.may_have(u64::MAX, 20));
    }
}

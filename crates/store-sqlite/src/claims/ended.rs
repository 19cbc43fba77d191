//! Removes claims that have ended, by a walk over all of them in the order of their hashes.
//!
//! An index by the time of their end would be as large as they are, and be written in no order too. The walk reads
//! everything, so it begins at most once an hour; what it removes lies together.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postrider_model::UnixMillis;
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::Fallible;

/// Time between the beginnings of two walks: a page that is written loses one in 24 of its claims, when these stand for a
/// day.
const WALK_EVERY: Duration = Duration::from_secs(3600);

/// Where the walk is. Lost with the process: the next one begins anew.
#[derive(Debug)]
pub(crate) struct EndedClaims(Mutex<Place>);

#[derive(Debug)]
struct Place {
    /// The last key that was looked at; empty before the first.
    after: Vec<u8>,
    /// When the last walk began.
    began_at: Option<Instant>,
}

impl EndedClaims {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Place {
            after: Vec::new(),
            began_at: None,
        }))
    }

    /// Looks at the next `limit` claims; returns how many it removed.
    pub(crate) fn step(&self, connection: &Connection, now: UnixMillis, limit: u32) -> Fallible<usize> {
        let mut place = self.0.lock();
        if place.after.is_empty() {
            if place.began_at.is_some_and(|began| began.elapsed() < WALK_EVERY) {
                return Ok(0);
            }
            place.began_at = Some(Instant::now());
        }
        let last: Option<Vec<u8>> = connection
            .prepare_cached("SELECT key FROM claims WHERE key > ?1 ORDER BY key LIMIT 1 OFFSET ?2")?
            .query_row(params![place.after, limit.saturating_sub(1)], |row| row.get(0))
            .optional()?;
        let gone = match &last {
            Some(last) => connection
                .prepare_cached("DELETE FROM claims WHERE key > ?1 AND key <= ?2 AND expires_at <= ?3")?
                .execute(params![place.after, last, now.0])?,
            None => connection
                .prepare_cached("DELETE FROM claims WHERE key > ?1 AND expires_at <= ?2")?
                .execute(params![place.after, now.0])?,
        };
        place.after = last.unwrap_or_default();
        Ok(gone)
    }
}

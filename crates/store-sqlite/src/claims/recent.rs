//! Claims of messages that are not yet in the table by hash: on disk in the order in which they came, and in memory.
//!
//! A commit carries the claims of its records ([`RecentClaims::append`]) and a portion of a merge
//! ([`RecentClaims::merge`]); what it did counts once it is known how it went ([`RecentClaims::committed`]). The rows of
//! what was merged are removed after the last portion, so a crash at any time costs a merge that is done again.

use std::collections::BTreeMap;
use std::ops::Bound;

use parking_lot::Mutex;
use postrider_model::{Claim, UnixMillis};
use rusqlite::{Connection, params};

use super::Key;
use crate::codec;
use crate::error::Fallible;

/// Claims that are merged together; up to half as many more come meanwhile. Each is some 130 bytes in memory.
const MERGED_TOGETHER: usize = 65_536;
/// How many claims a commit merges, or rows it removes, for each claim that it brings: a merge and the removal that follows
/// it end before half as many have come as it merges, so that what gathers is bounded however much comes.
const PORTION: usize = 4;
const PORTION_MIN: usize = 64;

/// Shared by the writer, which fills it, and the readers.
#[derive(Debug)]
pub(crate) struct RecentClaims {
    merged_together: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// On disk, to be merged later.
    recent: BTreeMap<Key, Claim>,
    /// The last row of those.
    last_row: i64,
    merging: Option<Merging>,
    /// What the transaction that is open did.
    open: Open,
}

/// Claims on their way into the table by hash.
#[derive(Debug)]
struct Merging {
    claims: BTreeMap<Key, Claim>,
    /// The last one that is there.
    done: Option<Key>,
    /// The last row of all of them.
    last_row: i64,
}

#[derive(Debug, Default)]
struct Open {
    appended: Vec<Claim>,
    last_row: Option<i64>,
    step: Option<Step>,
}

#[derive(Debug)]
enum Step {
    /// Claims up to this one were merged.
    Merged(Key),
    /// The last rows were removed.
    Finished,
}

impl RecentClaims {
    /// Reads what was left on disk. `merges`: whether this process is the one that merges claims. Two would remove each other's.
    pub(crate) fn load(connection: &Connection, merges: bool) -> Fallible<Self> {
        let merged_together = if merges { MERGED_TOGETHER } else { usize::MAX };
        Self::with(connection, merged_together)
    }

    pub(super) fn with(connection: &Connection, merged_together: usize) -> Fallible<Self> {
        let now = UnixMillis::now();
        let mut state = State::default();
        let mut all = connection
            .prepare("SELECT n, key, resource, fingerprint, expires_at FROM recent_claims ORDER BY n")?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            state.last_row = row.get(0)?;
            let claim = Claim {
                key: row.get(1)?,
                resource: row.get(2)?,
                fingerprint: row.get(3)?,
                expires_at: codec::time(row, 4)?,
            };
            put(&mut state.recent, claim, now);
        }
        drop(rows);
        Ok(Self {
            merged_together,
            state: Mutex::new(state),
        })
    }

    /// The claims of these keys, in order.
    pub(crate) fn find(&self, keys: &[Key], now: UnixMillis) -> Vec<Option<Claim>> {
        let state = self.state.lock();
        let find = |key: &Key| {
            let merging = state.merging.as_ref().and_then(|merging| merging.claims.get(key));
            let standing = merging.filter(|claim| claim.expires_at > now);
            let standing = standing.or_else(|| state.recent.get(key).filter(|claim| claim.expires_at > now));
            standing.cloned()
        };
        keys.iter().map(find).collect()
    }

    /// Appends claims in the open transaction. The last thing that a job does: what fails after it would not take them
    /// back.
    pub(crate) fn append(&self, connection: &Connection, claims: Vec<Claim>) -> Fallible<()> {
        if claims.is_empty() {
            return Ok(());
        }
        let mut append = connection.prepare_cached(
            "INSERT INTO recent_claims (key, resource, fingerprint, expires_at) VALUES (?1, ?2, ?3, ?4)",
        )?;
        for claim in &claims {
            append.execute(params![
                claim.key,
                claim.resource,
                claim.fingerprint,
                claim.expires_at.0
            ])?;
        }
        super::ends(connection, &claims)?;
        let open = &mut self.state.lock().open;
        open.appended.extend(claims);
        open.last_row = Some(connection.last_insert_rowid());
        Ok(())
    }

    /// A portion of the merge that is under way, in the open transaction, once.
    pub(crate) fn merge(&self, connection: &Connection) -> Fallible<()> {
        let (portion, many, last_row) = {
            let state = self.state.lock();
            let Some(merging) = &state.merging else {
                return Ok(());
            };
            let many = (PORTION * state.open.appended.len()).max(PORTION_MIN);
            let after = merging.done.map_or(Bound::Unbounded, Bound::Excluded);
            let rest = merging.claims.range((after, Bound::Unbounded));
            let portion: Vec<Claim> = rest.take(many).map(|(_, claim)| claim.clone()).collect();
            (portion, many, merging.last_row)
        };
        let step = match portion.last() {
            Some(last) => {
                super::merge(connection, &portion, UnixMillis::now())?;
                Some(Step::Merged(last.key))
            }
            None => {
                connection
                    .prepare_cached(
                        "DELETE FROM recent_claims WHERE n IN (
                            SELECT n FROM recent_claims WHERE n <= ?1 ORDER BY n LIMIT ?2)",
                    )?
                    .execute(params![last_row, i64::try_from(many).unwrap_or(i64::MAX)])?;
                // Told with the last one, since rows of an empty table are numbered from the start again.
                let left: bool = connection
                    .prepare_cached("SELECT EXISTS (SELECT 1 FROM recent_claims WHERE n <= ?1)")?
                    .query_row([last_row], |row| row.get(0))?;
                (!left).then_some(Step::Finished)
            }
        };
        self.state.lock().open.step = step;
        Ok(())
    }

    /// How the transaction ended.
    pub(crate) fn committed(&self, success: bool) {
        let mut state = self.state.lock();
        let open = std::mem::take(&mut state.open);
        if !success {
            return;
        }
        let now = UnixMillis::now();
        for claim in open.appended {
            put(&mut state.recent, claim, now);
        }
        state.last_row = open.last_row.unwrap_or(state.last_row);
        match open.step {
            Some(Step::Merged(key)) => {
                if let Some(merging) = &mut state.merging {
                    merging.done = Some(key);
                }
            }
            Some(Step::Finished) => state.merging = None,
            None => {}
        }
        if state.merging.is_none() && state.recent.len() >= self.merged_together {
            state.merging = Some(Merging {
                claims: std::mem::take(&mut state.recent),
                done: None,
                last_row: state.last_row,
            });
        }
    }
}

/// The first claim of a key keeps it until it ends.
fn put(claims: &mut BTreeMap<Key, Claim>, claim: Claim, now: UnixMillis) {
    let standing = claims.get(&claim.key);
    if standing.is_none_or(|standing| standing.expires_at <= now) {
        claims.insert(claim.key, claim);
    }
}

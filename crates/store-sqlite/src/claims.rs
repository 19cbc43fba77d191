//! Claims of idempotency keys and event ids, found by their hash.
//!
//! Hashes come in no order: a table by hash has a page to write for each new claim, and the larger it is, the more of
//! them are to be read first. So claims of messages come as in a log-structured merge tree. [`recent`] appends them to
//! a table in the order in which they come, dozens to a page, and finds them in memory; enough of them are merged into
//! the table by hash in the order of their hashes, where neighbours share a page. Claims of changes to the
//! configuration are few and go straight to the table by hash.
//!
//! Guarantees: a claim stands from the commit of its record until it ends, over restarts, and the first one of a key
//! keeps it. Claims that ended are not found; [`ended`] removes them later.

pub(crate) mod ended;
pub(crate) mod recent;
#[cfg(test)]
mod tests;

use postrider_model::{Claim, UnixMillis};
use rusqlite::{Connection, OptionalExtension, params};

use self::recent::RecentClaims;
use crate::codec;
use crate::error::Fallible;

/// What a claim is found by.
pub(crate) type Key = [u8; 32];

/// The claims of these keys that have not ended, in order.
pub(crate) fn find(
    connection: &Connection,
    recent: &RecentClaims,
    keys: &[Key],
) -> Fallible<Vec<Option<Claim>>> {
    let now = UnixMillis::now();
    // Looked at first: what leaves the memory meanwhile is in the table, which is looked at after that.
    let recent = recent.find(keys, now);
    let merged = find_merged(connection, keys, now)?;
    Ok(merged
        .into_iter()
        .zip(recent)
        .map(|(merged, recent)| merged.or(recent))
        .collect())
}

/// Keeps one claim, and returns the one that stands.
pub(crate) fn keep(connection: &Connection, recent: &RecentClaims, claim: &Claim) -> Fallible<Claim> {
    let now = UnixMillis::now();
    if let Some(standing) = recent.find(&[claim.key], now).pop().flatten() {
        return Ok(standing);
    }
    merge(connection, std::slice::from_ref(claim), now)?;
    ends(connection, std::slice::from_ref(claim))?;
    let standing = find_merged(connection, &[claim.key], now)?.pop().flatten();
    // One that ends in this very millisecond stands no more, and nor does the one that it kept out.
    Ok(standing.unwrap_or_else(|| claim.clone()))
}

/// Removes the claim of this key if it is this resource's.
pub(crate) fn drop_one(connection: &Connection, key: &Key, resource: &[u8; 16]) -> Fallible<()> {
    connection
        .prepare_cached("DELETE FROM claims WHERE key = ?1 AND resource = ?2")?
        .execute(params![key, resource])?;
    Ok(())
}

/// When the last of all claims ends.
pub(crate) fn last_end(connection: &Connection) -> Fallible<Option<UnixMillis>> {
    let end: i64 = connection.query_row("SELECT claims_end FROM progress", [], |row| row.get(0))?;
    Ok((end > 0).then_some(UnixMillis(end)))
}

/// Notes when the last of these ends.
fn ends(connection: &Connection, claims: &[Claim]) -> Fallible<()> {
    if let Some(last) = claims.iter().map(|claim| claim.expires_at.0).max() {
        connection
            .prepare_cached("UPDATE progress SET claims_end = ?1 WHERE claims_end < ?1")?
            .execute([last])?;
    }
    Ok(())
}

fn find_merged(connection: &Connection, keys: &[Key], now: UnixMillis) -> Fallible<Vec<Option<Claim>>> {
    let mut find = connection.prepare_cached(
        "SELECT resource, fingerprint, expires_at FROM claims WHERE key = ?1 AND expires_at > ?2",
    )?;
    keys.iter()
        .map(|key| {
            let claim = find.query_row(params![key, now.0], |row| {
                Ok(Claim {
                    key: *key,
                    resource: row.get(0)?,
                    fingerprint: row.get(1)?,
                    expires_at: codec::time(row, 2)?,
                })
            });
            Ok(claim.optional()?)
        })
        .collect()
}

/// Puts claims into the table by hash. One that stands is not replaced: the first request keeps its key until it ends.
fn merge(connection: &Connection, claims: &[Claim], now: UnixMillis) -> Fallible<()> {
    let mut put = connection.prepare_cached(
        "INSERT INTO claims (key, resource, fingerprint, expires_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (key) DO UPDATE SET resource = excluded.resource, fingerprint = excluded.fingerprint,
            expires_at = excluded.expires_at WHERE claims.expires_at <= ?5",
    )?;
    for claim in claims {
        put.execute(params![
            claim.key,
            claim.resource,
            claim.fingerprint,
            claim.expires_at.0,
            now.0
        ])?;
    }
    Ok(())
}

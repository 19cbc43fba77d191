//! What retention removes by its time alone, at most `limit` rows of each kind a call.

use std::time::Duration;

use postrider_model::UnixMillis;
use postrider_store::fold::COUNTER_BUCKET_MS;
use rusqlite::{Connection, params};

use crate::error::Fallible;

/// How long the mark of a trial is kept.
const TRIALS_KEPT: Duration = Duration::from_secs(24 * 3600);

const TRIALS: &str = "DELETE FROM trials WHERE (delivery, run) IN (
    SELECT delivery, run FROM trials WHERE at < ?1 ORDER BY at LIMIT ?2)";
const COUNTERS: &str = "DELETE FROM counters WHERE (endpoint, hour) IN (
    SELECT endpoint, hour FROM counters WHERE hour < ?1 ORDER BY hour LIMIT ?2)";
const TASKS: &str =
    "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE state <> 0 AND updated_at < ?1 LIMIT ?2)";

pub(crate) const ENDPOINTS: &str =
    "DELETE FROM endpoints WHERE id IN (SELECT id FROM endpoints WHERE deleted_at < ?1 LIMIT ?2)";
/// The next change is numbered after the last: that one stays until there is a later.
pub(crate) const APPLICATIONS: &str = "DELETE FROM applications WHERE id IN (
    SELECT id FROM applications INDEXED BY applications_deleted
    WHERE deleted_at < ?1 AND changed < (SELECT max(changed) FROM applications) LIMIT ?2)";
/// A store that has no key at all is new, and is given one: the last stay, revoked as they are.
pub(crate) const KEYS: &str = "DELETE FROM api_keys WHERE id IN (
    SELECT id FROM api_keys INDEXED BY api_keys_revoked WHERE revoked_at < ?1 LIMIT ?2)
    AND EXISTS (SELECT 1 FROM api_keys WHERE revoked_at IS NULL OR revoked_at >= ?1)";

/// Removes old marks of trials, and counters and finished tasks from before `cutoff`. Returns how many.
pub(super) fn remove(
    connection: &Connection,
    now: UnixMillis,
    cutoff: UnixMillis,
    limit: u32,
) -> Fallible<usize> {
    let steps = [
        (TRIALS, now.minus(TRIALS_KEPT).0),
        (COUNTERS, cutoff.0.saturating_sub(COUNTER_BUCKET_MS)),
        (TASKS, cutoff.0),
    ];
    run(connection, &steps, limit)
}

/// Removes what was deleted or revoked before `cutoff`, for when the records from before that are gone. Returns how many.
pub(super) fn remove_deleted(connection: &Connection, cutoff: UnixMillis, limit: u32) -> Fallible<usize> {
    run(
        connection,
        &[ENDPOINTS, APPLICATIONS, KEYS].map(|sql| (sql, cutoff.0)),
        limit,
    )
}

fn run(connection: &Connection, steps: &[(&str, i64)], limit: u32) -> Fallible<usize> {
    let mut gone = 0;
    for (sql, before) in steps {
        gone += connection.prepare_cached(sql)?.execute(params![before, limit])?;
    }
    Ok(gone)
}

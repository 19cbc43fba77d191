//! Deliveries at which the process died again and again: one of them is leased at a time.

use postrider_model::UnixMillis;
use postrider_store::{PARK_DEATHS, SUSPECT_DEATHS};
use rusqlite::{Connection, params};

use crate::error::Fallible;

/// Whether a row with so many deaths goes alone.
pub(super) fn is_suspect(deaths: u32) -> bool {
    (SUSPECT_DEATHS..PARK_DEATHS).contains(&deaths)
}

/// Whether a suspect is out, so that no other may go.
pub(super) fn trial_is_on(connection: &Connection, now: UnixMillis) -> Fallible<bool> {
    Ok(connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM waiting WHERE deaths >= 3 AND leased = 1 AND due_at > ?1 AND deaths < ?2)",
        )?
        .query_row(params![now.0, PARK_DEATHS], |row| row.get(0))?)
}

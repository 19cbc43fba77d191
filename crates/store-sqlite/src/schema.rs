//! The schema and its forward-only migrations; `PRAGMA user_version` says how far a file is.

use postrider_store::StoreError;
use rusqlite::{Connection, TransactionBehavior};

use crate::error::Fallible;

/// In order; the version is how many have run. A migration that was released is never edited.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_initial.sql"),
    include_str!("../migrations/0002_suspects.sql"),
    include_str!("../migrations/0003_upkeep.sql"),
    include_str!("../migrations/0004_traceparent.sql"),
    include_str!("../migrations/0005_changed.sql"),
    include_str!("../migrations/0006_recent_claims.sql"),
    include_str!("../migrations/0007_deleted.sql"),
    include_str!("../migrations/0008_handed_out.sql"),
    include_str!("../migrations/0009_endpoint_bytes.sql"),
];

/// This program's version.
pub(crate) fn wanted() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

pub(crate) fn version(connection: &Connection) -> Fallible<u32> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Refuses what is not this program's schema.
pub(crate) fn check(connection: &Connection) -> Fallible<()> {
    let found = version(connection)?;
    let wanted = wanted();
    if found == wanted {
        Ok(())
    } else {
        Err(StoreError::Schema { found, wanted }.into())
    }
}

/// Runs what is missing, each migration in its own transaction; the version before and after.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(u32, u32), StoreError> {
    let mut run = || -> Fallible<(u32, u32)> {
        let before = version(connection)?;
        let wanted = wanted();
        if before > wanted {
            return Err(StoreError::Schema {
                found: before,
                wanted,
            }
            .into());
        }
        loop {
            // Another process may migrate at the same time: look again inside the transaction.
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let at = version(&transaction)?;
            let next = usize::try_from(at).ok().and_then(|at| MIGRATIONS.get(at));
            let Some(migration) = next else {
                return Ok((before, at));
            };
            transaction.execute_batch(migration)?;
            transaction.pragma_update(None, "user_version", at + 1)?;
            transaction.commit()?;
        }
    };
    run().map_err(StoreError::from)
}

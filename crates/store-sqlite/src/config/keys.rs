//! API keys.

use postrider_store::{NewKey, StoreError, StoredKey};
use rusqlite::{Connection, Row, params};

use crate::codec;
use crate::error::{Fallible, is_conflict};

pub(super) const KEYS_MAX: i64 = 1_000;

pub(crate) const KEY_COLUMNS: &str = "id, hash, scope, name, created_at, revoked_at";

pub(crate) fn read_key(row: &Row<'_>) -> rusqlite::Result<StoredKey> {
    Ok(StoredKey {
        key: NewKey {
            id: codec::id(row, 0)?,
            hash: row.get(1)?,
            scope: row.get(2)?,
            name: row.get(3)?,
            created_at: codec::time(row, 4)?,
        },
        revoked_at: codec::time_opt(row, 5)?,
    })
}

pub(super) fn create_key(connection: &Connection, key: &NewKey) -> Fallible<()> {
    let inserted = connection
        .prepare_cached(
            "INSERT INTO api_keys (id, hash, scope, name, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            key.id.as_bytes(),
            key.hash,
            key.scope,
            key.name,
            key.created_at.0
        ]);
    match inserted {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => Err(StoreError::Conflict("id").into()),
        Err(error) => Err(error.into()),
    }
}

//! API keys.

use postrider_model::KeyId;
use postrider_store::{NewKey, Page, StoreError, StoredKey, TimeRange};
use rusqlite::{Connection, Row, params};

use crate::codec::{self, Walk};
use crate::error::{Fallible, is_conflict};

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

pub(super) fn list_keys(connection: &Connection, page: &Page<KeyId>) -> Fallible<Vec<StoredKey>> {
    let walk = Walk::of(page);
    let sql = format!(
        "SELECT {KEY_COLUMNS} FROM api_keys WHERE id >= ?1 AND id < ?2 ORDER BY id {} LIMIT ?3",
        walk.order()
    );
    let (from, to) = walk.bounds(page.after.as_ref().map(KeyId::as_bytes), TimeRange::default());
    let keys = connection
        .prepare_cached(&sql)?
        .query_map(params![from, to, walk.rows], read_key)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(walk.arrange(keys))
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

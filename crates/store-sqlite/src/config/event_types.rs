//! Event types.

use postrider_model::{EventType, UnixMillis};
use postrider_store::{Page, StoreError};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::codec::{self, Walk};
use crate::error::{Fallible, is_conflict};

pub(crate) const EVENT_TYPE_COLUMNS: &str =
    "id, name, description, archived, deprecated, feature_flag, schemas, created_at, updated_at";

pub(crate) fn read_event_type(row: &Row<'_>) -> rusqlite::Result<EventType> {
    Ok(EventType {
        id: codec::id(row, 0)?,
        name: row.get(1)?,
        description: row.get(2)?,
        archived: row.get(3)?,
        deprecated: row.get(4)?,
        feature_flag: row.get(5)?,
        schemas: row.get(6)?,
        created_at: codec::time(row, 7)?,
        updated_at: codec::time(row, 8)?,
    })
}

pub(super) fn put_event_type(connection: &Connection, event_type: &EventType) -> Fallible<bool> {
    if replace_event_type(connection, event_type)? {
        return Ok(false);
    }
    insert_event_type(connection, event_type)?;
    Ok(true)
}

pub(super) fn update_event_type(
    connection: &Connection,
    event_type: &EventType,
    was: UnixMillis,
) -> Fallible<bool> {
    match find_event_type(connection, &event_type.name)? {
        None => Ok(false),
        Some(found) if found.updated_at != was => Err(StoreError::Changed.into()),
        Some(_) => replace_event_type(connection, event_type),
    }
}

pub(super) fn find_event_type(connection: &Connection, name: &str) -> Fallible<Option<EventType>> {
    let found = connection
        .prepare_cached(&format!(
            "SELECT {EVENT_TYPE_COLUMNS} FROM event_types WHERE name = ?1"
        ))?
        .query_row([name], read_event_type)
        .optional()?;
    Ok(found)
}

/// False when there is none of this name.
pub(super) fn replace_event_type(connection: &Connection, event_type: &EventType) -> Fallible<bool> {
    let updated = connection
        .prepare_cached(
            "UPDATE event_types SET description = ?2, archived = ?3, deprecated = ?4, feature_flag = ?5,
                schemas = ?6, updated_at = max(?7, updated_at + 1)
             WHERE name = ?1",
        )?
        .execute(params![
            event_type.name,
            event_type.description,
            event_type.archived,
            event_type.deprecated,
            event_type.feature_flag,
            event_type.schemas,
            event_type.updated_at.0,
        ])?;
    Ok(updated > 0)
}

pub(super) fn insert_event_type(connection: &Connection, event_type: &EventType) -> Fallible<()> {
    let inserted = connection
        .prepare_cached(
            "INSERT INTO event_types
                (name, description, archived, deprecated, feature_flag, schemas, updated_at, id, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT (name) DO UPDATE SET description = excluded.description, archived = excluded.archived,
                deprecated = excluded.deprecated, feature_flag = excluded.feature_flag, schemas = excluded.schemas,
                updated_at = max(excluded.updated_at, updated_at + 1), id = excluded.id,
                created_at = excluded.created_at
             WHERE archived",
        )?
        .execute(params![
            event_type.name,
            event_type.description,
            event_type.archived,
            event_type.deprecated,
            event_type.feature_flag,
            event_type.schemas,
            event_type.updated_at.0,
            event_type.id.as_bytes(),
            event_type.created_at.0,
        ]);
    match inserted {
        Ok(0) => Err(StoreError::Conflict("name").into()),
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => Err(StoreError::Conflict("name").into()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn delete_event_type(
    connection: &Connection,
    name: &str,
    expunge: bool,
    at: UnixMillis,
) -> Fallible<bool> {
    let changed = if expunge {
        connection
            .prepare_cached("DELETE FROM event_types WHERE name = ?1")?
            .execute([name])?
    } else {
        connection
            .prepare_cached(
                "UPDATE event_types SET archived = 1, updated_at = max(?2, updated_at + 1) WHERE name = ?1",
            )?
            .execute(params![name, at.0])?
    };
    Ok(changed > 0)
}

pub(super) fn list_event_types(
    connection: &Connection,
    page: &Page<String>,
    archived_too: bool,
) -> Fallible<Vec<EventType>> {
    let walk = Walk::of(page);
    let sql = format!(
        "SELECT {EVENT_TYPE_COLUMNS} FROM event_types
         WHERE name {} ?1 AND archived <= ?3 ORDER BY name {} LIMIT ?2",
        walk.beyond(),
        walk.order()
    );
    let rows = connection
        .prepare_cached(&sql)?
        .query_map(
            params![walk.start_name(page.after.as_deref()), walk.rows, archived_too],
            read_event_type,
        )?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(walk.arrange(rows))
}

//! Applications and their versions.

use postrider_model::{AppId, Application, UnixMillis};
use postrider_store::{AppRef, ChangedApps, Page, Since, StoreError, TimeRange};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::codec::{self, Walk};
use crate::error::{Fallible, is_conflict};

pub(crate) const APP_COLUMNS: &str =
    "id, uid, name, throttle_rate, metadata, created_at, updated_at, version, propagate_traceparent";

pub(crate) fn read_app(row: &Row<'_>) -> rusqlite::Result<(Application, u64)> {
    let version: i64 = row.get(7)?;
    let application = Application {
        id: codec::id(row, 0)?,
        uid: row.get(1)?,
        name: row.get(2)?,
        throttle_rate: row.get(3)?,
        propagate_traceparent: row.get(8)?,
        metadata: codec::from_json(row, 4)?,
        created_at: codec::time(row, 5)?,
        updated_at: codec::time(row, 6)?,
    };
    Ok((application, version.unsigned_abs()))
}

/// Raises an application's version; `None` when it is gone.
pub(crate) fn bump(connection: &Connection, app: AppId) -> Fallible<Option<u64>> {
    let version: Option<i64> = connection
        .prepare_cached(
            "UPDATE applications SET version = version + 1 WHERE id = ?1 AND deleted_at IS NULL RETURNING version",
        )?
        .query_row([app.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(version.map(i64::unsigned_abs))
}

pub(super) fn find_app(connection: &Connection, app: &AppRef) -> Fallible<Option<(Application, u64)>> {
    let found = match app {
        AppRef::Id(id) => connection
            .prepare_cached(&format!(
                "SELECT {APP_COLUMNS} FROM applications WHERE id = ?1 AND deleted_at IS NULL"
            ))?
            .query_row([id.as_bytes()], read_app),
        AppRef::Uid(uid) => connection
            .prepare_cached(&format!(
                "SELECT {APP_COLUMNS} FROM applications WHERE uid = ?1 AND deleted_at IS NULL"
            ))?
            .query_row([uid], read_app),
    };
    Ok(found.optional()?)
}

pub(crate) const CHANGED: &str = "SELECT id, version FROM applications WHERE changed >= ?1 LIMIT ?2";

pub(super) fn changed_apps(
    connection: &Connection,
    since: Option<Since>,
    limit: u32,
) -> Fallible<ChangedApps> {
    // There is one writer, so what comes later has a greater number.
    let next = connection
        .prepare_cached("SELECT coalesce(max(changed), 0) + 1 FROM applications")?
        .query_row([], |row| row.get(0))?;
    let apps = match since {
        None => Vec::new(),
        Some(Since(since)) => connection
            .prepare_cached(CHANGED)?
            .query_map(params![since, limit], |row| {
                Ok((codec::id(row, 0)?, row.get::<_, i64>(1)?.unsigned_abs()))
            })?
            .collect::<rusqlite::Result<_>>()?,
    };
    Ok(ChangedApps {
        apps,
        next: Since(next),
    })
}

/// Which of `uid` and `id` was taken.
pub(super) fn app_conflict(connection: &Connection, id: AppId) -> Fallible<StoreError> {
    let taken = connection
        .prepare_cached("SELECT 1 FROM applications WHERE id = ?1")?
        .exists([id.as_bytes()])?;
    Ok(StoreError::Conflict(if taken { "id" } else { "uid" }))
}

pub(super) fn create_app(connection: &Connection, app: &Application) -> Fallible<u64> {
    let inserted = connection
        .prepare_cached(
            "INSERT INTO applications (id, uid, name, throttle_rate, metadata, version, created_at, updated_at,
                propagate_traceparent)
             VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?7, ?8)",
        )?
        .execute(params![
            app.id.as_bytes(),
            app.uid,
            app.name,
            app.throttle_rate,
            codec::to_json(&app.metadata)?,
            app.created_at.0,
            app.updated_at.0,
            app.propagate_traceparent,
        ]);
    match inserted {
        Ok(_) => Ok(1),
        Err(error) if is_conflict(&error) => Err(app_conflict(connection, app.id)?.into()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn update_app(
    connection: &Connection,
    app: &Application,
    was: UnixMillis,
) -> Fallible<Option<u64>> {
    let Some((found, _)) = find_app(connection, &AppRef::Id(app.id))? else {
        return Ok(None);
    };
    if found.updated_at != was {
        return Err(StoreError::Changed.into());
    }
    let updated = connection
        .prepare_cached(
            "UPDATE applications SET uid = ?2, name = ?3, throttle_rate = ?4, metadata = ?5, updated_at = ?6,
                propagate_traceparent = ?7
             WHERE id = ?1 AND deleted_at IS NULL",
        )?
        .execute(params![
            app.id.as_bytes(),
            app.uid,
            app.name,
            app.throttle_rate,
            codec::to_json(&app.metadata)?,
            app.updated_at.0,
            app.propagate_traceparent,
        ]);
    match updated {
        Ok(_) => bump(connection, app.id),
        Err(error) if is_conflict(&error) => Err(StoreError::Conflict("uid").into()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn delete_app(connection: &Connection, id: AppId, at: UnixMillis) -> Fallible<Option<u64>> {
    let version = bump(connection, id)?;
    if version.is_none() {
        return Ok(None);
    }
    connection
        .prepare_cached(
            "UPDATE backlog SET next_due = ?2, doomed = 1
             WHERE endpoint IN (SELECT id FROM endpoints WHERE app = ?1 AND deleted_at IS NULL)",
        )?
        .execute(params![id.as_bytes(), UnixMillis::NEVER.0])?;
    connection
        .prepare_cached("UPDATE endpoints SET deleted_at = ?2 WHERE app = ?1 AND deleted_at IS NULL")?
        .execute(params![id.as_bytes(), at.0])?;
    connection
        .prepare_cached("UPDATE applications SET deleted_at = ?2, updated_at = ?2 WHERE id = ?1")?
        .execute(params![id.as_bytes(), at.0])?;
    Ok(version)
}

pub(super) fn list_apps(connection: &Connection, page: &Page<AppId>) -> Fallible<Vec<Application>> {
    let walk = Walk::of(page);
    let sql = format!(
        "SELECT {APP_COLUMNS} FROM applications
         WHERE deleted_at IS NULL AND id >= ?1 AND id < ?2 ORDER BY id {} LIMIT ?3",
        walk.order()
    );
    let (from, to) = walk.bounds(page.after.as_ref().map(AppId::as_bytes), TimeRange::default());
    let rows = connection
        .prepare_cached(&sql)?
        .query_map(params![from, to, walk.rows], read_app)?
        .map(|row| row.map(|(application, _)| application))
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(walk.arrange(rows))
}

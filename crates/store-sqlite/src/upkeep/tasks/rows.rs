//! The rows of background tasks.

use postrider_model::{AppId, UnixMillis};
use postrider_store::{TaskKind, TaskRow, TaskState};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::codec;
use crate::error::Fallible;

pub(crate) fn read_task(row: &Row<'_>) -> rusqlite::Result<TaskRow> {
    Ok(TaskRow {
        id: codec::id(row, 0)?,
        kind: match row.get::<_, u8>(1)? {
            1 => TaskKind::Recover,
            2 => TaskKind::Replay,
            other => return Err(rusqlite::Error::IntegralValueOutOfRange(1, i64::from(other))),
        },
        app: codec::id(row, 2)?,
        endpoint: codec::id(row, 3)?,
        since: codec::time(row, 4)?,
        until: codec::time(row, 5)?,
        cursor: codec::id_opt(row, 6)?,
        state: match row.get::<_, u8>(7)? {
            0 => TaskState::Running,
            1 => TaskState::Finished,
            2 => TaskState::Failed,
            other => return Err(rusqlite::Error::IntegralValueOutOfRange(7, i64::from(other))),
        },
        updated_at: codec::time(row, 8)?,
    })
}

pub(crate) const TASK_COLUMNS: &str = "id, kind, app, endpoint, since, until, cursor, state, updated_at";

pub(crate) fn create_task(connection: &Connection, task: &TaskRow) -> Fallible<()> {
    // Made again after a crash, a task is the same task and keeps its cursor.
    connection
        .prepare_cached(&format!(
            "INSERT INTO tasks ({TASK_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT (id) DO NOTHING"
        ))?
        .execute(params![
            task.id.as_bytes(),
            task.kind as u8,
            task.app.as_bytes(),
            task.endpoint.as_bytes(),
            task.since.0,
            task.until.0,
            task.cursor.as_ref().map(|cursor| *cursor.as_bytes()),
            task.state as u8,
            task.updated_at.0
        ])?;
    Ok(())
}

/// How many of an application go on, up to `most`.
pub(crate) fn count_running(connection: &Connection, app: AppId, most: u32) -> Fallible<u32> {
    let count = connection
        .prepare_cached("SELECT count(*) FROM (SELECT 1 FROM tasks WHERE state = 0 AND app = ?1 LIMIT ?2)")?
        .query_row(params![app.as_bytes(), most], |row| row.get(0))?;
    Ok(count)
}

/// The task that has rested longest of those that go on: each has its turn, however many there are. A kind that only a newer
/// version knows is left to it.
pub(super) fn longest_rested(connection: &Connection) -> Fallible<Option<TaskRow>> {
    let task = connection
        .prepare_cached(&format!(
            "SELECT {TASK_COLUMNS} FROM tasks WHERE state = 0 AND kind IN (1, 2) ORDER BY updated_at, id LIMIT 1"
        ))?
        .query_row([], read_task)
        .optional()?;
    Ok(task)
}

/// Keeps how far a task came; it rests from now on.
pub(super) fn rest(connection: &Connection, task: &TaskRow) -> Fallible<()> {
    connection
        .prepare_cached("UPDATE tasks SET cursor = ?2, state = ?3, updated_at = ?4 WHERE id = ?1")?
        .execute(params![
            task.id.as_bytes(),
            task.cursor.as_ref().map(|cursor| *cursor.as_bytes()),
            task.state as u8,
            UnixMillis::now().0
        ])?;
    Ok(())
}

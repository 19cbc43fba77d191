//! The rows of background tasks.

use postrider_model::{AppId, EndpointId, MessageId, TaskId, UnixMillis};
use postrider_store::{TaskKind, TaskRow, TaskState};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::PostgresStore;
use crate::error::{Work, corrupt};

/// What [`decode`] reads.
macro_rules! columns {
    () => {
        "id, kind, app, endpoint, since, until, cursor, state, updated_at"
    };
}
pub(super) use columns;

pub(in crate::upkeep) async fn create(store: &PostgresStore, task: &TaskRow) -> Work<()> {
    sqlx::query(
        "INSERT INTO tasks (id, kind, app, endpoint, since, until, cursor, state, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(task.id.as_uuid())
    .bind(i16::from(task.kind as u8))
    .bind(task.app.as_uuid())
    .bind(task.endpoint.as_uuid())
    .bind(task.since.0)
    .bind(task.until.0)
    .bind(task.cursor.map(|cursor| cursor.as_uuid()))
    .bind(i16::from(task.state as u8))
    .bind(task.updated_at.0)
    .execute(&store.write)
    .await?;
    Ok(())
}

pub(in crate::upkeep) async fn count_running(store: &PostgresStore, app: AppId, most: u32) -> Work<u32> {
    let count: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT 1 FROM tasks WHERE state = 0 AND app = $1 LIMIT $2) t",
    )
    .bind(app.as_uuid())
    .bind(i64::from(most))
    .fetch_one(&store.read)
    .await?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

pub(in crate::upkeep) async fn load(store: &PostgresStore, id: TaskId) -> Work<Option<TaskRow>> {
    let row = sqlx::query(concat!("SELECT ", columns!(), " FROM tasks WHERE id = $1"))
        .bind(id.as_uuid())
        .fetch_optional(&store.read)
        .await?;
    row.as_ref().map(decode).transpose()
}

pub(super) fn decode(row: &PgRow) -> Work<TaskRow> {
    let (kind, state): (i16, i16) = (row.try_get("kind")?, row.try_get("state")?);
    Ok(TaskRow {
        id: TaskId::from_uuid(row.try_get("id")?),
        kind: match kind {
            1 => TaskKind::Recover,
            2 => TaskKind::Replay,
            _ => return Err(corrupt(format!("{kind} is not a kind of task"))),
        },
        app: AppId::from_uuid(row.try_get("app")?),
        endpoint: EndpointId::from_uuid(row.try_get("endpoint")?),
        since: UnixMillis(row.try_get("since")?),
        until: UnixMillis(row.try_get("until")?),
        cursor: row
            .try_get::<Option<Uuid>, _>("cursor")?
            .map(MessageId::from_uuid),
        state: match state {
            0 => TaskState::Running,
            1 => TaskState::Finished,
            2 => TaskState::Failed,
            _ => return Err(corrupt(format!("{state} is not a state of a task"))),
        },
        updated_at: UnixMillis(row.try_get("updated_at")?),
    })
}

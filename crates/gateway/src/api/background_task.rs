//! Background tasks: recoveries and replays.

use axum::Json;
use axum::extract::State;
use postrider_model::TaskId;
use postrider_store::{TaskKind, TaskRow, TaskState};
use serde::Serialize;
use utoipa::ToSchema;

use super::Path;
use crate::error::{Error, ErrorOut};
use crate::page::show_time;
use crate::state::Api;

/// How far a background task is.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = RecoverOut)]
pub(crate) struct TaskOut {
    #[schema(value_type = String)]
    id: TaskId,
    /// `running`, `finished` or `failed`.
    status: &'static str,
    /// `endpoint.recover` or `endpoint.replay`.
    task: &'static str,
    #[schema(format = DateTime)]
    updated_at: String,
    /// What it works on.
    data: TaskData,
}

/// What a background task works on.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TaskData {
    app_id: String,
    endpoint_id: String,
    #[schema(format = DateTime)]
    since: String,
    #[schema(format = DateTime)]
    until: String,
}

impl From<TaskRow> for TaskOut {
    fn from(task: TaskRow) -> Self {
        Self {
            id: task.id,
            status: match task.state {
                TaskState::Running => "running",
                TaskState::Finished => "finished",
                TaskState::Failed => "failed",
            },
            task: match task.kind {
                TaskKind::Recover => "endpoint.recover",
                TaskKind::Replay => "endpoint.replay",
            },
            updated_at: show_time(task.updated_at),
            data: TaskData {
                app_id: task.app.to_string(),
                endpoint_id: task.endpoint.to_string(),
                since: show_time(task.since),
                until: show_time(task.until),
            },
        }
    }
}

/// Get a background task.
#[utoipa::path(
    get, path = "/api/v1/background-task/{task_id}", tag = "Background task", operation_id = "v1.background-task.get",
    params(("task_id" = String, Path)),
    responses((status = 200, body = TaskOut), (status = 404, body = ErrorOut))
)]
pub(crate) async fn get(State(api): State<Api>, Path(task): Path<String>) -> Result<Json<TaskOut>, Error> {
    let id: TaskId = task.parse().map_err(|_| Error::not_found())?;
    let task = api.store.task(id).await?.ok_or_else(Error::not_found)?;
    Ok(Json(task.into()))
}

//! What could not be handled and was parked, for an operator to look at.

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use postrider_store::{ParkedRow, Part};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::Path;
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::page::{FromParams, LIMIT_DEFAULT, Params, Query, show_time};
use crate::state::Api;

/// First bytes of what was parked that a list shows.
const SHOWN_BYTES_MAX: usize = 4096;

/// What was parked.
#[derive(Serialize, ToSchema)]
pub(crate) struct ParkedOut {
    id: i64,
    /// `job`, `record` or `frame`.
    kind: String,
    /// Why.
    reason: String,
    /// When.
    #[schema(format = DateTime)]
    at: String,
    /// False when the key that sealed it is not there: `size` is 0 and `head` empty then. It can be removed.
    readable: bool,
    /// Its size in bytes.
    size: usize,
    /// Its first 4 KiB, in base64.
    head: String,
}

/// Parked rows, newest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct ParkedListOut {
    /// The rows, fewer than asked for when they are large.
    data: Vec<ParkedOut>,
    /// Pass it as `iterator` for the next rows.
    iterator: Option<String>,
    /// Whether there is nothing more.
    done: bool,
}

/// How many.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ParkedQuery {
    /// At most so many.
    #[param(minimum = 1, maximum = 250, default = 50)]
    limit: Option<u32>,
    /// The iterator of an earlier page.
    #[param(value_type = Option<String>)]
    iterator: Option<i64>,
}

impl FromParams for ParkedQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        Ok(Self {
            limit: params.limit()?,
            iterator: params.parsed("iterator")?,
        })
    }
}

impl From<ParkedRow> for ParkedOut {
    fn from(row: ParkedRow) -> Self {
        Self {
            id: row.id,
            kind: row.kind,
            reason: row.reason,
            at: show_time(row.at),
            readable: !row.sealed_away,
            size: row.bytes.len(),
            head: STANDARD.encode(&row.bytes[..row.bytes.len().min(SHOWN_BYTES_MAX)]),
        }
    }
}

/// List what was parked.
#[utoipa::path(
    get, path = "/api/v1/parked", tag = "Operation", operation_id = "v1.parked.list", params(ParkedQuery),
    responses((status = 200, body = ParkedListOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    Query(query): Query<ParkedQuery>,
) -> Result<Json<ParkedListOut>, Error> {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    let Part { rows, cut } = api.store.parked(limit, query.iterator).await?;
    Ok(Json(ParkedListOut {
        data: rows.into_iter().map(ParkedOut::from).collect(),
        iterator: cut.map(|last| last.to_string()),
        done: cut.is_none(),
    }))
}

/// Remove what was parked.
#[utoipa::path(
    delete, path = "/api/v1/parked/{parked_id}", tag = "Operation", operation_id = "v1.parked.delete",
    params(("parked_id" = i64, Path)),
    responses((status = 204), (status = 404, body = ErrorOut))
)]
pub(crate) async fn delete(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode, Error> {
    let id: i64 = id.parse().map_err(|_| Error::not_found())?;
    let removed = api.store.unpark(id).await?.ok_or_else(Error::not_found)?;
    tracing::info!(
        parked.id = id,
        parked.kind = removed.kind,
        parked.reason = removed.reason,
        "removed what was parked"
    );
    Ok(StatusCode::NO_CONTENT)
}

//! Attempts: lists along the index of their endpoint or of their message.

use std::time::Duration;

use bytes::Bytes;
use postrider_model::{AppId, Attempt, AttemptClass, AttemptId, MessageId};
use postrider_store::{AttemptFilter, AttemptRow, Page, Part, StoreError};
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::look::{is_wanted, look};
use super::messages::message_filter;
use crate::codec::{self, Walk};
use crate::error::Fallible;

pub(crate) const COLUMNS: &str =
    "a.id, a.message, a.endpoint, a.delivery, a.origin, a.started_at, a.duration_ms, a.class, a.status,
    a.response, a.url";
/// Columns of [`COLUMNS`].
const WIDTH: usize = 11;

pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<AttemptRow> {
    let duration: i64 = row.get(6)?;
    Ok(AttemptRow {
        message: codec::id(row, 1)?,
        endpoint: codec::id(row, 2)?,
        delivery: codec::id(row, 3)?,
        trigger: codec::origin(row, 4)?,
        attempt: Attempt {
            id: codec::id(row, 0)?,
            started_at: codec::time(row, 5)?,
            duration: Duration::from_millis(duration.unsigned_abs()),
            class: codec::class(row, 7)?,
            status: row.get(8)?,
            response: Bytes::copy_from_slice(row.get_ref(9)?.as_blob()?),
            url: row.get(10)?,
        },
    })
}

/// Walks the attempts of an endpoint or of a message; the last column is the filter's answer.
pub(crate) fn list_sql(filter: &AttemptFilter, walk: &Walk) -> Fallible<String> {
    // A message has few attempts at one endpoint, an endpoint many: the message's index first.
    let of = match (filter.message, filter.endpoint) {
        (Some(_), _) => "a.message = :message",
        (None, Some(_)) => "a.endpoint = :endpoint AND :message IS NULL",
        (None, None) => {
            return Err(StoreError::Rejected("attempts are listed by endpoint or by message".into()).into());
        }
    };
    Ok(format!(
        "SELECT {COLUMNS}, (:endpoint IS NULL OR a.endpoint = :endpoint)
            AND (:success IS NULL OR (a.class = :ok) = :success)
            AND (:status IS NULL OR a.status / 100 = :status) AND {}
         FROM attempts a LEFT JOIN messages m ON m.id = a.message
         WHERE {of} AND a.app = :app AND a.id >= :from AND a.id < :to
         ORDER BY a.id {}",
        message_filter!(":types", ":channel"),
        walk.order(),
    ))
}

pub(crate) fn list(
    connection: &Connection,
    app: AppId,
    filter: &AttemptFilter,
    page: &Page<AttemptId>,
) -> Fallible<Part<AttemptRow, AttemptId>> {
    let walk = Walk::of(page);
    let (from, to) = walk.bounds(page.after.as_ref().map(AttemptId::as_bytes), filter.range);
    let mut statement = connection.prepare_cached(&list_sql(filter, &walk)?)?;
    let rows = statement.query(named_params! {
        ":message": filter.message.as_ref().map(|id| *id.as_bytes()),
        ":endpoint": filter.endpoint.as_ref().map(|id| *id.as_bytes()),
        ":app": app.as_bytes(),
        ":from": from,
        ":to": to,
        ":success": filter.success,
        ":ok": AttemptClass::Success as u8,
        ":status": filter.status_class,
        ":types": codec::to_json(&filter.event_types)?,
        ":channel": filter.channel,
    })?;
    let read = |row: &Row<'_>| {
        let wanted = is_wanted(row, WIDTH)?.then(|| read(row));
        Ok(wanted.transpose()?)
    };
    let place = |row: &Row<'_>| codec::id(row, 0);
    look(rows, &walk, filter.is_selective(), read, |_| 0, place)
}

pub(crate) fn find(
    connection: &Connection,
    app: AppId,
    message: MessageId,
    id: AttemptId,
) -> Fallible<Option<AttemptRow>> {
    let found = connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM attempts a WHERE a.message = ?1 AND a.id = ?2 AND a.app = ?3"
        ))?
        .query_row(params![message.as_bytes(), id.as_bytes(), app.as_bytes()], read)
        .optional()?;
    Ok(found)
}

/// Empties an attempt's response; false when there is no such attempt.
pub(crate) fn expunge(
    connection: &Connection,
    app: AppId,
    message: MessageId,
    id: AttemptId,
) -> Fallible<bool> {
    let changed = connection
        .prepare_cached("UPDATE attempts SET response = x'' WHERE message = ?1 AND id = ?2 AND app = ?3")?
        .execute(params![message.as_bytes(), id.as_bytes(), app.as_bytes()])?;
    Ok(changed > 0)
}

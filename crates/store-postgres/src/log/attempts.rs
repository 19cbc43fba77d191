//! Attempts of an endpoint and of a message.

use bytes::Bytes;
use postrider_model::{
    AppId, Attempt, AttemptClass, AttemptId, DeliveryId, EndpointId, MessageId, UnixMillis,
};
use postrider_store::{AttemptFilter, AttemptRow, Page, Part};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::deliveries::to_trigger;
use super::reading::{Reading, STEP_SKIPS};
use crate::PostgresStore;
use crate::error::{Work, corrupt};
use crate::row::{Place, Window, clean_all, clean_opt, keyset, to_duration};

/// What [`decode`] reads. By name, here and for the other tables: a column that a later migration adds must not change what
/// a prepared statement of an older process answers.
macro_rules! columns {
    () => {
        "a.id, a.delivery, a.message, a.endpoint, a.started_at, a.duration_ms, a.status, a.class, a.trigger, \
         a.response, a.url"
    };
}

/// A list by one of two indexes: `a.endpoint` or `a.message`. The other is a filter.
macro_rules! list {
    ($first:literal, $second:literal) => {
        keyset!(
            concat!(
                "SELECT ",
                columns!(),
                " FROM attempts a WHERE ",
                $first,
                " = $2 AND ($3::uuid IS NULL OR ",
                $second,
                " = $3) AND a.id >= $4 AND a.id < $5 AND a.app = $6 \
                 AND ($7::boolean IS NULL OR (a.class = 0) = $7) \
                 AND ($8::integer IS NULL OR a.status / 100 = $8) \
                 AND (cardinality($9::text[]) = 0 AND $10::text IS NULL OR EXISTS (SELECT 1 FROM messages m \
                 WHERE m.id = a.message AND (cardinality($9) = 0 OR m.event_type = ANY($9)) \
                 AND ($10 IS NULL OR m.channels ? $10)))"
            ),
            "a.id"
        )
    };
}
/// The last row of the first step through a window of that index.
macro_rules! step_end {
    ($first:literal) => {
        keyset!(
            skip concat!(
                "SELECT a.id FROM attempts a WHERE ",
                $first,
                " = $2 AND a.id >= $3 AND a.id < $4 AND a.app = $5"
            ),
            "a.id"
        )
    };
}

pub(super) async fn list(
    store: &PostgresStore,
    app: AppId,
    filter: &AttemptFilter,
    page: &Page<AttemptId>,
) -> Work<Part<AttemptRow, AttemptId>> {
    const OF_ENDPOINT: [[&str; 2]; 2] = [list!("a.endpoint", "a.message"), step_end!("a.endpoint")];
    const OF_MESSAGE: [[&str; 2]; 2] = [list!("a.message", "a.endpoint"), step_end!("a.message")];
    let endpoint = filter.endpoint.map(|endpoint| endpoint.as_uuid());
    let message = filter.message.map(|message| message.as_uuid());
    // A message has few attempts, an endpoint has many.
    let ([lists, step_ends], first, second) = match (message, endpoint) {
        (Some(message), endpoint) => (OF_MESSAGE, message, endpoint),
        (None, Some(endpoint)) => (OF_ENDPOINT, endpoint, None),
        (None, None) => return Ok(Part::whole(Vec::new())),
    };
    let window = Window::new(page, filter.range, AttemptId::as_uuid);
    let mut connection = store.read.acquire().await?;
    let mut reading = Reading::new(window, filter.is_selective());
    while let Some((left, in_steps)) = reading.left() {
        let statement = step_ends[usize::from(left.descending)];
        let edge = if in_steps {
            step_end(&mut connection, statement, app, first, &left).await?
        } else {
            None
        };
        let step = reading.step(left, edge);
        let rows = sqlx::query(lists[usize::from(step.descending)])
            .persistent(!in_steps)
            .bind(step.limit)
            .bind(first)
            .bind(second)
            .bind(step.low)
            .bind(step.high)
            .bind(app.as_uuid())
            .bind(filter.success)
            .bind(filter.status_class.map(i32::from))
            .bind(clean_all(&filter.event_types))
            .bind(clean_opt(filter.channel.as_ref()))
            .fetch(&mut *connection);
        let place = |row: &AttemptRow| (row.attempt.id.as_uuid(), Uuid::nil());
        reading.take(rows, decode, |_| 0, place).await?;
    }
    Ok(reading.part(|(id, _)| AttemptId::from_uuid(id)))
}

async fn step_end(
    connection: &mut PgConnection,
    statement: &'static str,
    app: AppId,
    first: Uuid,
    window: &Window,
) -> Work<Option<Place>> {
    let id: Option<Uuid> = sqlx::query_scalar(statement)
        .persistent(false)
        .bind(STEP_SKIPS)
        .bind(first)
        .bind(window.low)
        .bind(window.high)
        .bind(app.as_uuid())
        .fetch_optional(connection)
        .await?;
    Ok(id.map(|id| (id, Uuid::nil())))
}

pub(super) async fn by_id(
    store: &PostgresStore,
    app: AppId,
    message: MessageId,
    id: AttemptId,
) -> Work<Option<AttemptRow>> {
    let row = sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM attempts a WHERE id = $1 AND message = $2 AND app = $3"
    ))
    .bind(id.as_uuid())
    .bind(message.as_uuid())
    .bind(app.as_uuid())
    .fetch_optional(&store.read)
    .await?;
    row.as_ref().map(decode).transpose()
}

pub(super) async fn expunge(
    store: &PostgresStore,
    app: AppId,
    message: MessageId,
    id: AttemptId,
) -> Work<bool> {
    let done = sqlx::query("UPDATE attempts SET response = '' WHERE id = $1 AND message = $2 AND app = $3")
        .bind(id.as_uuid())
        .bind(message.as_uuid())
        .bind(app.as_uuid())
        .execute(&store.write)
        .await?;
    Ok(done.rows_affected() > 0)
}

fn decode(row: &PgRow) -> Work<AttemptRow> {
    let id = AttemptId::from_uuid(row.try_get("id")?);
    let class: i16 = row.try_get("class")?;
    let status: i32 = row.try_get("status")?;
    Ok(AttemptRow {
        attempt: Attempt {
            id,
            started_at: UnixMillis(row.try_get("started_at")?),
            duration: to_duration(row.try_get("duration_ms")?),
            class: AttemptClass::from_stored(class)
                .ok_or_else(|| corrupt(format!("{class} is not a class of attempt")))?,
            status: u16::try_from(status).map_err(|_| corrupt(format!("{status} is not a status")))?,
            response: Bytes::from(row.try_get::<Vec<u8>, _>("response")?),
            url: row.try_get("url")?,
        },
        delivery: DeliveryId::from_uuid(row.try_get("delivery")?),
        message: MessageId::from_uuid(row.try_get("message")?),
        endpoint: EndpointId::from_uuid(row.try_get("endpoint")?),
        trigger: to_trigger(row.try_get("trigger")?),
    })
}

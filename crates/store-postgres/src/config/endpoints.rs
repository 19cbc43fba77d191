//! Endpoints, and what their changes do to what waits for them.

use postrider_model::{AppId, Endpoint, EndpointId, ExhaustedPolicy, HeaderNames, RetrySchedule, UnixMillis};
use postrider_store::{EndpointRef, EndpointUse, Page, StoreError, TimeRange};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row};
use uuid::Uuid;

use super::apps::{bump, metadata, to_metadata};
use crate::PostgresStore;
use crate::error::{Work, corrupt};
use crate::row::{Window, clean, clean_all, clean_opt, keyset, millis, to_duration, to_u32};

macro_rules! select {
    ($condition:literal) => {
        concat!(
            "SELECT id, app, uid, url, description, event_types, channels, disabled, paused, throttle_rate, ordered, \
             pause_when_exhausted, svix_header_names, timeout_ms, retry_schedule_ms, headers, secrets, \
             metadata::text AS metadata, created_at, updated_at \
             FROM endpoints WHERE deleted_at IS NULL AND ",
            $condition
        )
    };
}

/// Endpoints of an application, counted up to `most`.
pub(super) async fn in_use(store: &PostgresStore, app: AppId) -> Work<EndpointUse> {
    let (count, bytes): (i64, i64) = sqlx::query_as(
        "SELECT count(*), coalesce(sum(memory_bytes), 0)::bigint FROM endpoints \
         WHERE app = $1 AND deleted_at IS NULL",
    )
    .bind(app.as_uuid())
    .fetch_one(&store.read)
    .await?;
    Ok(EndpointUse {
        count: to_u32(count)?,
        bytes: bytes.unsigned_abs(),
    })
}

pub(super) async fn create(store: &PostgresStore, endpoint: &Endpoint) -> Work<Option<u64>> {
    let mut tx = store.write.begin().await?;
    let Some(version) = bump(&mut tx, endpoint.app).await? else {
        return Ok(None);
    };
    let insert = sqlx::query(
        "INSERT INTO endpoints (id, app, uid, url, description, event_types, channels, disabled, paused, \
         throttle_rate, ordered, pause_when_exhausted, svix_header_names, timeout_ms, retry_schedule_ms, headers, \
         secrets, metadata, updated_at, memory_bytes, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18::jsonb, $19, $20, \
         $21)",
    );
    bind_fields(store, insert, endpoint)
        .bind(endpoint.created_at.0)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(Some(version))
}

pub(super) async fn update(store: &PostgresStore, endpoint: &Endpoint, was: UnixMillis) -> Work<Option<u64>> {
    let mut tx = store.write.begin().await?;
    let Some(version) = bump(&mut tx, endpoint.app).await? else {
        return Ok(None);
    };
    let before: Option<(bool, bool, i64)> = sqlx::query_as(
        "SELECT disabled, paused, updated_at FROM endpoints \
         WHERE id = $1 AND app = $2 AND deleted_at IS NULL FOR UPDATE",
    )
    .bind(endpoint.id.as_uuid())
    .bind(endpoint.app.as_uuid())
    .fetch_optional(&mut *tx)
    .await?;
    let Some((was_disabled, was_paused, updated_at)) = before else {
        return Ok(None);
    };
    if updated_at != was.0 {
        return Err(StoreError::Changed.into());
    }
    let update = sqlx::query(
        "UPDATE endpoints SET uid = $3, url = $4, description = $5, event_types = $6, channels = $7, \
         disabled = $8, paused = $9, throttle_rate = $10, ordered = $11, pause_when_exhausted = $12, \
         svix_header_names = $13, timeout_ms = $14, retry_schedule_ms = $15, headers = $16, secrets = $17, \
         metadata = $18::jsonb, updated_at = $19, memory_bytes = $20 WHERE id = $1 AND app = $2",
    );
    bind_fields(store, update, endpoint).execute(&mut *tx).await?;
    if endpoint.disabled {
        flag_for_sweep(&mut tx, endpoint.app, &[endpoint.id.as_uuid()]).await?;
    } else {
        if was_disabled || (was_paused && !endpoint.paused) {
            // Otherwise its next failure might disable it, with all that waits: its days of failures went on while it got nothing.
            sqlx::query("DELETE FROM endpoint_health WHERE endpoint = $1")
                .bind(endpoint.id.as_uuid())
                .execute(&mut *tx)
                .await?;
        }
        // Due at once: the scheduler looks and sets the right time.
        sqlx::query(
            "UPDATE backlog SET next_due = least(next_due, now_ms()), not_before = 0, sweep = false \
             WHERE endpoint = $1",
        )
        .bind(endpoint.id.as_uuid())
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    Ok(Some(version))
}

pub(super) async fn delete(
    store: &PostgresStore,
    app: AppId,
    id: EndpointId,
    at: UnixMillis,
) -> Work<Option<u64>> {
    let mut tx = store.write.begin().await?;
    let Some(version) = bump(&mut tx, app).await? else {
        return Ok(None);
    };
    let gone = sqlx::query(
        "UPDATE endpoints SET deleted_at = $3, updated_at = $3 WHERE id = $1 AND app = $2 AND deleted_at IS NULL",
    )
    .bind(id.as_uuid())
    .bind(app.as_uuid())
    .bind(at.0)
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if gone == 0 {
        return Ok(None);
    }
    flag_for_sweep(&mut tx, app, &[id.as_uuid()]).await?;
    tx.commit().await?;
    Ok(Some(version))
}

/// Makes the sweep look at these disabled or deleted endpoints, and the scheduler pass them over.
pub(crate) async fn flag_for_sweep(
    connection: &mut PgConnection,
    app: AppId,
    endpoints: &[Uuid],
) -> Work<()> {
    sqlx::query(
        "INSERT INTO backlog (endpoint, app, next_due, sweep) \
         SELECT e, $2, 9223372036854775807, true FROM unnest($1::uuid[]) e ORDER BY e \
         ON CONFLICT (endpoint) DO UPDATE SET next_due = EXCLUDED.next_due, sweep = true",
    )
    .bind(endpoints)
    .bind(app.as_uuid())
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn load(
    store: &PostgresStore,
    app: AppId,
    endpoint: &EndpointRef,
) -> Work<Option<Endpoint>> {
    let query = match endpoint {
        EndpointRef::Id(id) => sqlx::query(select!("app = $1 AND id = $2"))
            .bind(app.as_uuid())
            .bind(id.as_uuid()),
        EndpointRef::Uid(uid) => sqlx::query(select!("app = $1 AND uid = $2"))
            .bind(app.as_uuid())
            .bind(clean(uid)),
    };
    let row = query.fetch_optional(&store.read).await?;
    row.map(|row| decode(store, &row)).transpose()
}

pub(super) async fn list(store: &PostgresStore, app: AppId, page: &Page<EndpointId>) -> Work<Vec<Endpoint>> {
    const LIST: [&str; 2] = keyset!(select!("id >= $2 AND id < $3 AND app = $4"), "id");
    let window = Window::new(page, TimeRange::default(), EndpointId::as_uuid);
    let rows = sqlx::query(LIST[usize::from(window.descending)])
        .bind(window.limit)
        .bind(window.low)
        .bind(window.high)
        .bind(app.as_uuid())
        .fetch_all(&store.read)
        .await?;
    let endpoints = rows
        .iter()
        .map(|row| decode(store, row))
        .collect::<Work<Vec<_>>>()?;
    Ok(window.arrange(endpoints))
}

/// All live endpoints of an application, by id.
pub(crate) async fn all(
    store: &PostgresStore,
    connection: &mut PgConnection,
    app: AppId,
) -> Work<Vec<Endpoint>> {
    let rows = sqlx::query(select!("app = $1 ORDER BY id"))
        .bind(app.as_uuid())
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| decode(store, row)).collect()
}

/// Binds parameters 1 to 19: every field but the creation time.
pub(crate) fn bind_fields<'q>(
    store: &PostgresStore,
    query: Query<'q, Postgres, PgArguments>,
    endpoint: &Endpoint,
) -> Query<'q, Postgres, PgArguments> {
    let schedule = endpoint.retry_schedule.as_ref().map(|schedule| {
        schedule
            .delays()
            .iter()
            .copied()
            .map(millis)
            .collect::<Vec<i64>>()
    });
    query
        .bind(endpoint.id.as_uuid())
        .bind(endpoint.app.as_uuid())
        .bind(clean_opt(endpoint.uid.as_ref()))
        .bind(clean(&endpoint.url))
        .bind(clean(&endpoint.description))
        .bind(clean_all(&endpoint.event_types))
        .bind(clean_all(&endpoint.channels))
        .bind(endpoint.disabled)
        .bind(endpoint.paused)
        .bind(endpoint.throttle_rate.map(i64::from))
        .bind(endpoint.ordered)
        .bind(endpoint.on_exhausted == ExhaustedPolicy::Pause)
        .bind(endpoint.header_names == HeaderNames::Svix)
        .bind(endpoint.timeout.map(millis))
        .bind(schedule)
        .bind(store.sealer.headers(endpoint.id, &endpoint.headers))
        .bind(store.sealer.secrets(endpoint.id, &endpoint.secrets))
        .bind(metadata(&endpoint.metadata))
        .bind(endpoint.updated_at.0)
        .bind(i64::try_from(endpoint.memory_bytes()).unwrap_or(i64::MAX))
}

fn decode(store: &PostgresStore, row: &PgRow) -> Work<Endpoint> {
    let id = EndpointId::from_uuid(row.try_get("id")?);
    let schedule = row
        .try_get::<Option<Vec<i64>>, _>("retry_schedule_ms")?
        .map(|delays| RetrySchedule::try_new(delays.into_iter().map(to_duration).collect()))
        .transpose()
        .map_err(|error| corrupt(format!("retry schedule of {id}: {error}")))?;
    Ok(Endpoint {
        id,
        app: AppId::from_uuid(row.try_get("app")?),
        uid: row.try_get("uid")?,
        url: row.try_get("url")?,
        description: row.try_get("description")?,
        event_types: row.try_get("event_types")?,
        channels: row.try_get("channels")?,
        disabled: row.try_get("disabled")?,
        paused: row.try_get("paused")?,
        throttle_rate: row
            .try_get::<Option<i64>, _>("throttle_rate")?
            .map(to_u32)
            .transpose()?,
        ordered: row.try_get("ordered")?,
        on_exhausted: if row.try_get("pause_when_exhausted")? {
            ExhaustedPolicy::Pause
        } else {
            ExhaustedPolicy::Skip
        },
        header_names: if row.try_get("svix_header_names")? {
            HeaderNames::Svix
        } else {
            HeaderNames::Standard
        },
        timeout: row.try_get::<Option<i64>, _>("timeout_ms")?.map(to_duration),
        retry_schedule: schedule,
        headers: store.sealer.open_headers(id, row.try_get("headers")?)?,
        secrets: store.sealer.open_secrets(id, row.try_get("secrets")?)?,
        metadata: to_metadata(row.try_get("metadata")?)?,
        created_at: UnixMillis(row.try_get("created_at")?),
        updated_at: UnixMillis(row.try_get("updated_at")?),
    })
}

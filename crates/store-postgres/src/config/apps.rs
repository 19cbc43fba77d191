//! Applications and their snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use postrider_model::{AppId, AppSnapshot, Application, UnixMillis};
use postrider_store::{AppRef, ChangedApps, Page, Since, StoreError, TimeRange};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::endpoints;
use crate::PostgresStore;
use crate::error::{Work, corrupt};
use crate::row::{Window, clean, clean_opt, keyset, to_u32};

macro_rules! select {
    ($condition:literal) => {
        concat!(
            "SELECT id, uid, name, throttle_rate, metadata::text AS metadata, version, created_at, updated_at, \
             propagate_traceparent \
             FROM applications WHERE deleted_at IS NULL AND ",
            $condition
        )
    };
}

pub(super) async fn create(store: &PostgresStore, app: &Application) -> Work<u64> {
    sqlx::query(
        "INSERT INTO applications (id, uid, name, throttle_rate, metadata, created_at, updated_at, \
         propagate_traceparent) VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7, $8)",
    )
    .bind(app.id.as_uuid())
    .bind(clean_opt(app.uid.as_ref()))
    .bind(clean(&app.name))
    .bind(app.throttle_rate.map(i64::from))
    .bind(metadata(&app.metadata))
    .bind(app.created_at.0)
    .bind(app.updated_at.0)
    .bind(app.propagate_traceparent)
    .execute(&store.write)
    .await?;
    Ok(1)
}

pub(super) async fn update(store: &PostgresStore, app: &Application, was: UnixMillis) -> Work<Option<u64>> {
    let mut tx = store.write.begin().await?;
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT updated_at FROM applications WHERE id = $1 AND deleted_at IS NULL FOR UPDATE",
    )
    .bind(app.id.as_uuid())
    .fetch_optional(&mut *tx)
    .await?;
    match found {
        None => return Ok(None),
        Some(found) if found != was.0 => return Err(StoreError::Changed.into()),
        Some(_) => {}
    }
    let version = sqlx::query_scalar(
        "UPDATE applications SET uid = $2, name = $3, throttle_rate = $4, metadata = $5::jsonb, updated_at = $6, \
         propagate_traceparent = $7, version = version + 1 WHERE id = $1 RETURNING version",
    )
    .bind(app.id.as_uuid())
    .bind(clean_opt(app.uid.as_ref()))
    .bind(clean(&app.name))
    .bind(app.throttle_rate.map(i64::from))
    .bind(metadata(&app.metadata))
    .bind(app.updated_at.0)
    .bind(app.propagate_traceparent)
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    to_version(version).map(Some)
}

pub(super) async fn delete(store: &PostgresStore, id: AppId, at: UnixMillis) -> Work<Option<u64>> {
    let mut tx = store.write.begin().await?;
    let version: Option<i64> = sqlx::query_scalar(
        "UPDATE applications SET deleted_at = $2, updated_at = $2, version = version + 1 \
         WHERE id = $1 AND deleted_at IS NULL RETURNING version",
    )
    .bind(id.as_uuid())
    .bind(at.0)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(version) = version else { return Ok(None) };
    let gone: Vec<uuid::Uuid> = sqlx::query_scalar(
        "UPDATE endpoints SET deleted_at = $2, updated_at = $2 WHERE app = $1 AND deleted_at IS NULL RETURNING id",
    )
    .bind(id.as_uuid())
    .bind(at.0)
    .fetch_all(&mut *tx)
    .await?;
    endpoints::flag_for_sweep(&mut tx, id, &gone).await?;
    tx.commit().await?;
    to_version(version).map(Some)
}

/// Bumps the version of a live application and locks it for the rest of the transaction.
pub(super) async fn bump(connection: &mut PgConnection, app: AppId) -> Work<Option<u64>> {
    let version = sqlx::query_scalar(
        "UPDATE applications SET version = version + 1 WHERE id = $1 AND deleted_at IS NULL RETURNING version",
    )
    .bind(app.as_uuid())
    .fetch_optional(connection)
    .await?;
    version.map(to_version).transpose()
}

pub(super) async fn load(connection: &mut PgConnection, app: &AppRef) -> Work<Option<(Application, u64)>> {
    let query = match app {
        AppRef::Id(id) => sqlx::query(select!("id = $1")).bind(id.as_uuid()),
        AppRef::Uid(uid) => sqlx::query(select!("uid = $1")).bind(clean(uid)),
    };
    let row = query.fetch_optional(connection).await?;
    row.map(|row| Ok((decode(&row)?, to_version(row.try_get("version")?)?)))
        .transpose()
}

pub(super) async fn list(store: &PostgresStore, page: &Page<AppId>) -> Work<Vec<Application>> {
    const LIST: [&str; 2] = keyset!(select!("id >= $2 AND id < $3"), "id");
    let window = Window::new(page, TimeRange::default(), AppId::as_uuid);
    let rows = sqlx::query(LIST[usize::from(window.descending)])
        .bind(window.limit)
        .bind(window.low)
        .bind(window.high)
        .fetch_all(&store.read)
        .await?;
    let apps = rows.iter().map(decode).collect::<Work<Vec<_>>>()?;
    Ok(window.arrange(apps))
}

pub(super) async fn snapshot(store: &PostgresStore, app: &AppRef) -> Work<Option<AppSnapshot>> {
    let mut tx = store
        .write
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    let Some((application, version)) = load(&mut tx, app).await? else {
        return Ok(None);
    };
    let endpoints = endpoints::all(store, &mut tx, application.id).await?;
    tx.commit().await?;
    Ok(Some(AppSnapshot {
        version,
        application,
        endpoints: endpoints.into_iter().map(Arc::new).collect(),
    }))
}

/// Goes by the numbers of transactions. A snapshot has seen all below its `xmin`; what may have been under way is asked for
/// again. None is above its `xmax`: such a number came with a dump from another server.
pub(super) async fn changed(store: &PostgresStore, since: Option<Since>, limit: u32) -> Work<ChangedApps> {
    let mut connection = store.write.acquire().await?;
    let next = sqlx::query_scalar("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
        .fetch_one(&mut *connection)
        .await?;
    let mut changed = ChangedApps {
        apps: Vec::new(),
        next: Since(next),
    };
    if let Some(since) = since {
        let rows = sqlx::query(
            "SELECT id, version FROM applications WHERE changed >= $1 \
             AND changed < (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint) LIMIT $2",
        )
        .bind(since.0)
        .bind(i64::from(limit))
        .fetch_all(&mut *connection)
        .await?;
        for row in &rows {
            let app = AppId::from_uuid(row.try_get("id")?);
            changed.apps.push((app, to_version(row.try_get("version")?)?));
        }
    }
    Ok(changed)
}

fn decode(row: &PgRow) -> Work<Application> {
    Ok(Application {
        id: AppId::from_uuid(row.try_get("id")?),
        uid: row.try_get("uid")?,
        name: row.try_get("name")?,
        throttle_rate: row
            .try_get::<Option<i64>, _>("throttle_rate")?
            .map(to_u32)
            .transpose()?,
        propagate_traceparent: row.try_get("propagate_traceparent")?,
        metadata: to_metadata(row.try_get("metadata")?)?,
        created_at: UnixMillis(row.try_get("created_at")?),
        updated_at: UnixMillis(row.try_get("updated_at")?),
    })
}

pub(crate) fn to_version(version: i64) -> Work<u64> {
    u64::try_from(version).map_err(|_| corrupt(format!("{version} is not a version")))
}

/// The caller's notes as JSON.
pub(crate) fn metadata(metadata: &BTreeMap<String, String>) -> String {
    let clean: BTreeMap<_, _> = metadata
        .iter()
        .map(|(name, value)| (clean(name), clean(value)))
        .collect();
    serde_json::to_string(&clean).unwrap_or_default()
}

pub(super) fn to_metadata(text: &str) -> Work<BTreeMap<String, String>> {
    serde_json::from_str(text).map_err(|_| corrupt("metadata is not a map of strings"))
}

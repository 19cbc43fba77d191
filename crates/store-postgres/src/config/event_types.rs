//! Event types.

use postrider_model::{EventType, EventTypeId, UnixMillis};
use postrider_store::{Page, StoreError};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};

use crate::PostgresStore;
use crate::error::Work;
use crate::row::{clean, clean_opt, keyset};

/// What [`decode`] reads.
macro_rules! columns {
    () => {
        "id, name, description, archived, deprecated, feature_flag, schemas, created_at, updated_at"
    };
}

macro_rules! insert {
    ($conflict:literal) => {
        concat!(
            "INSERT INTO event_types (id, name, description, archived, deprecated, feature_flag, schemas, \
             created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            $conflict
        )
    };
}

/// Inserts or replaces by name. `xmax` is 0 in a row that this statement inserted.
macro_rules! upsert {
    () => {
        insert!(
            " ON CONFLICT (name) DO UPDATE SET description = EXCLUDED.description, archived = EXCLUDED.archived, \
             deprecated = EXCLUDED.deprecated, feature_flag = EXCLUDED.feature_flag, schemas = EXCLUDED.schemas, \
             updated_at = greatest(EXCLUDED.updated_at, event_types.updated_at + 1) RETURNING (xmax = 0) AS created"
        )
    };
}

/// Inserts, or takes the place of an archived one.
macro_rules! revive {
    () => {
        insert!(
            " ON CONFLICT (name) DO UPDATE SET description = EXCLUDED.description, archived = EXCLUDED.archived, \
             deprecated = EXCLUDED.deprecated, feature_flag = EXCLUDED.feature_flag, schemas = EXCLUDED.schemas, \
             updated_at = greatest(EXCLUDED.updated_at, event_types.updated_at + 1), id = EXCLUDED.id, \
             created_at = EXCLUDED.created_at WHERE event_types.archived"
        )
    };
}

pub(super) async fn create(store: &PostgresStore, event_type: &EventType) -> Work<()> {
    let made = bind(sqlx::query(revive!()), event_type)
        .execute(&store.write)
        .await?;
    if made.rows_affected() == 0 {
        return Err(StoreError::Conflict("name").into());
    }
    Ok(())
}

pub(super) async fn put(store: &PostgresStore, event_type: &EventType) -> Work<bool> {
    let row = bind(sqlx::query(upsert!()), event_type)
        .fetch_one(&store.write)
        .await?;
    Ok(row.try_get("created")?)
}

pub(super) async fn update(store: &PostgresStore, event_type: &EventType, was: UnixMillis) -> Work<bool> {
    let mut tx = store.write.begin().await?;
    let found: Option<i64> =
        sqlx::query_scalar("SELECT updated_at FROM event_types WHERE name = $1 FOR UPDATE")
            .bind(clean(&event_type.name))
            .fetch_optional(&mut *tx)
            .await?;
    match found {
        None => return Ok(false),
        Some(found) if found != was.0 => return Err(StoreError::Changed.into()),
        Some(_) => {}
    }
    bind(sqlx::query(upsert!()), event_type).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(true)
}

pub(super) async fn delete(store: &PostgresStore, name: &str, expunge: bool, at: UnixMillis) -> Work<bool> {
    let query = if expunge {
        sqlx::query("DELETE FROM event_types WHERE name = $1").bind(clean(name))
    } else {
        sqlx::query("UPDATE event_types SET archived = true, updated_at = greatest($2, updated_at + 1) WHERE name = $1")
            .bind(clean(name))
            .bind(at.0)
    };
    Ok(query.execute(&store.write).await?.rows_affected() > 0)
}

pub(super) async fn load(store: &PostgresStore, name: &str) -> Work<Option<EventType>> {
    let row = sqlx::query(concat!(
        "SELECT ",
        columns!(),
        " FROM event_types WHERE name = $1"
    ))
    .bind(clean(name))
    .fetch_optional(&store.read)
    .await?;
    row.as_ref().map(decode).transpose()
}

pub(super) async fn list(
    store: &PostgresStore,
    page: &Page<String>,
    archived_too: bool,
) -> Work<Vec<EventType>> {
    const UP: [&str; 2] = keyset!(
        concat!(
            "SELECT ",
            columns!(),
            " FROM event_types WHERE (archived = false OR $2) AND name > $3"
        ),
        "name"
    );
    const DOWN: [&str; 2] = keyset!(
        concat!(
            "SELECT ",
            columns!(),
            " FROM event_types WHERE (archived = false OR $2) AND ($3::text IS NULL OR name < $3)"
        ),
        "name"
    );
    let descending = page.descending != page.backwards;
    let after = page.after.as_deref().map(clean);
    let query = if descending {
        sqlx::query(DOWN[1])
    } else {
        sqlx::query(UP[0])
    };
    // No name is empty, so ascending pages may start after the empty one.
    let after = if descending {
        after
    } else {
        Some(after.unwrap_or_default())
    };
    let rows = query
        .bind(i64::from(page.limit.clamp(1, 250)) + 1)
        .bind(archived_too)
        .bind(after)
        .fetch_all(&store.read)
        .await?;
    let mut types = rows.iter().map(decode).collect::<Work<Vec<_>>>()?;
    if page.backwards {
        types.reverse();
    }
    Ok(types)
}

fn bind<'q>(
    query: Query<'q, Postgres, PgArguments>,
    event_type: &EventType,
) -> Query<'q, Postgres, PgArguments> {
    query
        .bind(event_type.id.as_uuid())
        .bind(clean(&event_type.name))
        .bind(clean(&event_type.description))
        .bind(event_type.archived)
        .bind(event_type.deprecated)
        .bind(clean_opt(event_type.feature_flag.as_ref()))
        .bind(clean_opt(event_type.schemas.as_ref()))
        .bind(event_type.created_at.0)
        .bind(event_type.updated_at.0)
}

fn decode(row: &PgRow) -> Work<EventType> {
    Ok(EventType {
        id: EventTypeId::from_uuid(row.try_get("id")?),
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        archived: row.try_get("archived")?,
        deprecated: row.try_get("deprecated")?,
        feature_flag: row.try_get("feature_flag")?,
        schemas: row.try_get("schemas")?,
        created_at: UnixMillis(row.try_get("created_at")?),
        updated_at: UnixMillis(row.try_get("updated_at")?),
    })
}

//! `ConfigStore`: applications, event types, API keys. What concerns endpoints is in `endpoints`.

use std::sync::Arc;

use async_trait::async_trait;
use postrider_model::{
    AppId, AppSnapshot, Application, Claim, Endpoint, EndpointId, EventType, KeyId, UnixMillis,
};
use postrider_store::{AppRef, ConfigStore, EndpointRef, NewKey, Page, StoreError, StoredKey, TimeRange};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::codec::{self, Walk};
use crate::error::{Fallible, is_conflict};
use crate::log::find_claims;
use crate::record::put_claims;
use crate::{SqliteStore, endpoints};

const KEYS_MAX: i64 = 1_000;

pub(crate) const APP_COLUMNS: &str =
    "id, uid, name, throttle_rate, metadata, created_at, updated_at, version, propagate_traceparent";
pub(crate) const EVENT_TYPE_COLUMNS: &str =
    "id, name, description, archived, deprecated, feature_flag, schemas, created_at, updated_at";
pub(crate) const KEY_COLUMNS: &str = "id, hash, scope, name, created_at, revoked_at";

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

pub(crate) fn read_event_type(row: &Row<'_>) -> rusqlite::Result<EventType> {
    Ok(EventType {
        id: codec::id(row, 0)?,
        name: row.get(1)?,
        description: row.get(2)?,
        archived: row.get(3)?,
        deprecated: row.get(4)?,
        feature_flag: row.get(5)?,
        schemas: row.get(6)?,
        created_at: codec::time(row, 7)?,
        updated_at: codec::time(row, 8)?,
    })
}

pub(crate) fn read_key(row: &Row<'_>) -> rusqlite::Result<StoredKey> {
    Ok(StoredKey {
        key: NewKey {
            id: codec::id(row, 0)?,
            hash: row.get(1)?,
            scope: row.get(2)?,
            name: row.get(3)?,
            created_at: codec::time(row, 4)?,
        },
        revoked_at: codec::time_opt(row, 5)?,
    })
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

fn find_app(connection: &Connection, app: &AppRef) -> Fallible<Option<(Application, u64)>> {
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

/// Which of `uid` and `id` was taken.
fn app_conflict(connection: &Connection, id: AppId) -> Fallible<StoreError> {
    let taken = connection
        .prepare_cached("SELECT 1 FROM applications WHERE id = ?1")?
        .exists([id.as_bytes()])?;
    Ok(StoreError::Conflict(if taken { "id" } else { "uid" }))
}

fn create_app(connection: &Connection, app: &Application) -> Fallible<u64> {
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

fn update_app(connection: &Connection, app: &Application, was: UnixMillis) -> Fallible<Option<u64>> {
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

fn delete_app(connection: &Connection, id: AppId, at: UnixMillis) -> Fallible<Option<u64>> {
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

fn list_apps(connection: &Connection, page: &Page<AppId>) -> Fallible<Vec<Application>> {
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

fn put_event_type(connection: &Connection, event_type: &EventType) -> Fallible<bool> {
    if replace_event_type(connection, event_type)? {
        return Ok(false);
    }
    insert_event_type(connection, event_type)?;
    Ok(true)
}

fn update_event_type(connection: &Connection, event_type: &EventType, was: UnixMillis) -> Fallible<bool> {
    match find_event_type(connection, &event_type.name)? {
        None => Ok(false),
        Some(found) if found.updated_at != was => Err(StoreError::Changed.into()),
        Some(_) => replace_event_type(connection, event_type),
    }
}

fn find_event_type(connection: &Connection, name: &str) -> Fallible<Option<EventType>> {
    let found = connection
        .prepare_cached(&format!(
            "SELECT {EVENT_TYPE_COLUMNS} FROM event_types WHERE name = ?1"
        ))?
        .query_row([name], read_event_type)
        .optional()?;
    Ok(found)
}

/// False when there is none of this name.
fn replace_event_type(connection: &Connection, event_type: &EventType) -> Fallible<bool> {
    let updated = connection
        .prepare_cached(
            "UPDATE event_types SET description = ?2, archived = ?3, deprecated = ?4, feature_flag = ?5,
                schemas = ?6, updated_at = max(?7, updated_at + 1)
             WHERE name = ?1",
        )?
        .execute(params![
            event_type.name,
            event_type.description,
            event_type.archived,
            event_type.deprecated,
            event_type.feature_flag,
            event_type.schemas,
            event_type.updated_at.0,
        ])?;
    Ok(updated > 0)
}

fn insert_event_type(connection: &Connection, event_type: &EventType) -> Fallible<()> {
    let inserted = connection
        .prepare_cached(
            "INSERT INTO event_types
                (name, description, archived, deprecated, feature_flag, schemas, updated_at, id, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            event_type.name,
            event_type.description,
            event_type.archived,
            event_type.deprecated,
            event_type.feature_flag,
            event_type.schemas,
            event_type.updated_at.0,
            event_type.id.as_bytes(),
            event_type.created_at.0,
        ]);
    match inserted {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => Err(StoreError::Conflict("name").into()),
        Err(error) => Err(error.into()),
    }
}

fn delete_event_type(connection: &Connection, name: &str, expunge: bool, at: UnixMillis) -> Fallible<bool> {
    let changed = if expunge {
        connection
            .prepare_cached("DELETE FROM event_types WHERE name = ?1")?
            .execute([name])?
    } else {
        connection
            .prepare_cached(
                "UPDATE event_types SET archived = 1, updated_at = max(?2, updated_at + 1) WHERE name = ?1",
            )?
            .execute(params![name, at.0])?
    };
    Ok(changed > 0)
}

fn list_event_types(
    connection: &Connection,
    page: &Page<String>,
    archived_too: bool,
) -> Fallible<Vec<EventType>> {
    let walk = Walk::of(page);
    let sql = format!(
        "SELECT {EVENT_TYPE_COLUMNS} FROM event_types
         WHERE name {} ?1 AND archived <= ?3 ORDER BY name {} LIMIT ?2",
        walk.beyond(),
        walk.order()
    );
    let rows = connection
        .prepare_cached(&sql)?
        .query_map(
            params![walk.start_name(page.after.as_deref()), walk.rows, archived_too],
            read_event_type,
        )?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(walk.arrange(rows))
}

fn create_key(connection: &Connection, key: &NewKey) -> Fallible<()> {
    let inserted = connection
        .prepare_cached(
            "INSERT INTO api_keys (id, hash, scope, name, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            key.id.as_bytes(),
            key.hash,
            key.scope,
            key.name,
            key.created_at.0
        ]);
    match inserted {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => Err(StoreError::Conflict("id").into()),
        Err(error) => Err(error.into()),
    }
}

#[async_trait]
impl ConfigStore for SqliteStore {
    async fn create_app(&self, app: &Application) -> Result<u64, StoreError> {
        let app = app.clone();
        self.write(move |connection| create_app(connection, &app)).await
    }

    async fn update_app(&self, app: &Application, was: UnixMillis) -> Result<Option<u64>, StoreError> {
        let app = app.clone();
        self.write(move |connection| update_app(connection, &app, was))
            .await
    }

    async fn delete_app(&self, id: AppId, at: UnixMillis) -> Result<Option<u64>, StoreError> {
        self.write(move |connection| delete_app(connection, id, at)).await
    }

    async fn app(&self, app: &AppRef) -> Result<Option<Application>, StoreError> {
        let app = app.clone();
        self.read(move |connection| Ok(find_app(connection, &app)?.map(|(application, _)| application)))
            .await
    }

    async fn apps(&self, page: &Page<AppId>) -> Result<Vec<Application>, StoreError> {
        let page = page.clone();
        self.read(move |connection| list_apps(connection, &page)).await
    }

    async fn snapshot(&self, app: &AppRef) -> Result<Option<AppSnapshot>, StoreError> {
        let app = app.clone();
        let keyring = self.keyring.clone();
        self.read(move |connection| {
            // Both reads see the same commit.
            let transaction = connection.unchecked_transaction()?;
            let Some((application, version)) = find_app(&transaction, &app)? else {
                return Ok(None);
            };
            let endpoints = endpoints::all_of(&transaction, &keyring, application.id)?;
            Ok(Some(AppSnapshot {
                version,
                application,
                endpoints: endpoints.into_iter().map(Arc::new).collect(),
            }))
        })
        .await
    }

    async fn create_endpoint(&self, endpoint: &Endpoint) -> Result<Option<u64>, StoreError> {
        let row = endpoints::StoredEndpoint::seal(endpoint, &self.keyring)?;
        self.write(move |connection| endpoints::create(connection, &row))
            .await
    }

    async fn update_endpoint(&self, endpoint: &Endpoint, was: UnixMillis) -> Result<Option<u64>, StoreError> {
        let row = endpoints::StoredEndpoint::seal(endpoint, &self.keyring)?;
        self.write(move |connection| endpoints::update(connection, &row, was))
            .await
    }

    async fn delete_endpoint(
        &self,
        app: AppId,
        id: EndpointId,
        at: UnixMillis,
    ) -> Result<Option<u64>, StoreError> {
        self.write(move |connection| endpoints::delete(connection, app, id, at))
            .await
    }

    async fn endpoint(&self, app: AppId, endpoint: &EndpointRef) -> Result<Option<Endpoint>, StoreError> {
        let endpoint = endpoint.clone();
        let keyring = self.keyring.clone();
        self.read(move |connection| endpoints::find(connection, &keyring, app, &endpoint))
            .await
    }

    async fn endpoints(&self, app: AppId, page: &Page<EndpointId>) -> Result<Vec<Endpoint>, StoreError> {
        let page = page.clone();
        let keyring = self.keyring.clone();
        self.read(move |connection| endpoints::list(connection, &keyring, app, &page))
            .await
    }

    async fn create_event_type(&self, event_type: &EventType) -> Result<(), StoreError> {
        let event_type = event_type.clone();
        self.write(move |connection| insert_event_type(connection, &event_type))
            .await
    }

    async fn put_event_type(&self, event_type: &EventType) -> Result<bool, StoreError> {
        let event_type = event_type.clone();
        self.write(move |connection| put_event_type(connection, &event_type))
            .await
    }

    async fn update_event_type(&self, event_type: &EventType, was: UnixMillis) -> Result<bool, StoreError> {
        let event_type = event_type.clone();
        self.write(move |connection| update_event_type(connection, &event_type, was))
            .await
    }

    async fn delete_event_type(&self, name: &str, expunge: bool, at: UnixMillis) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.write(move |connection| delete_event_type(connection, &name, expunge, at))
            .await
    }

    async fn event_type(&self, name: &str) -> Result<Option<EventType>, StoreError> {
        let name = name.to_owned();
        self.read(move |connection| find_event_type(connection, &name))
            .await
    }

    async fn event_types(
        &self,
        page: &Page<String>,
        archived_too: bool,
    ) -> Result<Vec<EventType>, StoreError> {
        let page = page.clone();
        self.read(move |connection| list_event_types(connection, &page, archived_too))
            .await
    }

    async fn create_key(&self, key: &NewKey) -> Result<(), StoreError> {
        let key = key.clone();
        self.write(move |connection| create_key(connection, &key)).await
    }

    async fn key_by_hash(&self, hash: &[u8; 32]) -> Result<Option<StoredKey>, StoreError> {
        let hash = *hash;
        self.read(move |connection| {
            let found = connection
                .prepare_cached(&format!(
                    "SELECT {KEY_COLUMNS} FROM api_keys WHERE hash = ?1 AND revoked_at IS NULL"
                ))?
                .query_row([hash], read_key)
                .optional()?;
            Ok(found)
        })
        .await
    }

    async fn keys(&self) -> Result<Vec<StoredKey>, StoreError> {
        self.read(move |connection| {
            let keys = connection
                .prepare_cached(&format!(
                    "SELECT {KEY_COLUMNS} FROM api_keys ORDER BY id DESC LIMIT ?1"
                ))?
                .query_map([KEYS_MAX], read_key)?
                .collect::<rusqlite::Result<_>>()?;
            Ok(keys)
        })
        .await
    }

    async fn revoke_key(&self, id: KeyId, at: UnixMillis) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let changed = connection
                .prepare_cached("UPDATE api_keys SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL")?
                .execute(params![id.as_bytes(), at.0])?;
            Ok(changed > 0)
        })
        .await
    }

    async fn keep_claim(&self, claim: &Claim) -> Result<Claim, StoreError> {
        let claim = claim.clone();
        self.write(move |connection| {
            put_claims(connection, std::slice::from_ref(&claim), UnixMillis::now())?;
            let mut standing = find_claims(connection, &[claim.key])?;
            // One that ends in this very millisecond stands no more, and nor does the one that it kept out.
            Ok(standing.pop().flatten().unwrap_or(claim))
        })
        .await
    }

    async fn drop_claim(&self, key: &[u8; 32], resource: &[u8; 16]) -> Result<(), StoreError> {
        let (key, resource) = (*key, *resource);
        self.write(move |connection| {
            connection
                .prepare_cached("DELETE FROM claims WHERE key = ?1 AND resource = ?2")?
                .execute(params![key, resource])?;
            Ok(())
        })
        .await
    }
}

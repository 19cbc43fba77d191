//! Endpoints: rows with sealed secrets and headers, and what a change of one means for what waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_model::{
    AppId, Endpoint, EndpointId, EndpointSecret, ExhaustedPolicy, HeaderNames, RetrySchedule, UnixMillis,
};
use postrider_secrets::Keyring;
use postrider_store::{EndpointRef, EndpointUse, Page, StoreError, TimeRange};
use rusqlite::{Connection, OptionalExtension, Row, params};
use secrecy::{ExposeSecret, SecretString};

use super::apps::bump;
use crate::codec::{self, Walk};
use crate::error::{Fail, Fallible, is_conflict};
use crate::waiting;

/// Endpoints of one application that a snapshot holds.
const SNAPSHOT_MAX: i64 = 100_000;

pub(crate) const COLUMNS: &str = "id, app, uid, url, description, event_types, channels, disabled, paused, throttle_rate,
    ordered, on_exhausted, header_names, timeout_ms, retry_schedule, headers, secrets, metadata, created_at, updated_at";

/// An endpoint as it is stored; sealing it is work that the writer's thread need not do.
pub(crate) struct StoredEndpoint {
    endpoint: Endpoint,
    event_types: String,
    channels: String,
    retry_schedule: Option<String>,
    metadata: String,
    headers: Vec<u8>,
    secrets: Vec<u8>,
}

pub(crate) fn aad(id: EndpointId, column: &str) -> String {
    format!("endpoint/{id}/{column}")
}

impl StoredEndpoint {
    pub(crate) fn seal(endpoint: &Endpoint, keyring: &Keyring) -> Result<Self, StoreError> {
        Self::try_seal(endpoint, keyring).map_err(|error| Fail::from(error).into())
    }

    fn try_seal(endpoint: &Endpoint, keyring: &Keyring) -> rusqlite::Result<Self> {
        let headers: BTreeMap<&str, &str> = endpoint
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose_secret()))
            .collect();
        let secrets: Vec<(&str, Option<i64>)> = endpoint
            .secrets
            .iter()
            .map(|secret| (secret.text.expose_secret(), secret.expires_at.map(|at| at.0)))
            .collect();
        let schedule = endpoint.retry_schedule.as_ref().map(|schedule| {
            let delays: Vec<u64> = schedule.delays().iter().copied().map(millis).collect();
            codec::to_json(&delays)
        });
        let headers = codec::to_json(&headers)?;
        let secrets = codec::to_json(&secrets)?;
        Ok(Self {
            event_types: codec::to_json(&endpoint.event_types)?,
            channels: codec::to_json(&endpoint.channels)?,
            retry_schedule: schedule.transpose()?,
            metadata: codec::to_json(&endpoint.metadata)?,
            headers: keyring.seal(aad(endpoint.id, "headers").as_bytes(), headers.as_bytes()),
            secrets: keyring.seal(aad(endpoint.id, "secrets").as_bytes(), secrets.as_bytes()),
            endpoint: endpoint.clone(),
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn open_json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
    keyring: &Keyring,
    aad: &str,
) -> rusqlite::Result<T> {
    let sealed = row.get_ref(column)?.as_blob()?;
    let plain = codec::readable(column, keyring.open(aad.as_bytes(), sealed))?;
    codec::readable(column, serde_json::from_slice(&plain))
}

pub(crate) fn read(row: &Row<'_>, keyring: &Keyring) -> rusqlite::Result<Endpoint> {
    let id: EndpointId = codec::id(row, 0)?;
    let headers: BTreeMap<String, String> = open_json(row, 15, keyring, &aad(id, "headers"))?;
    let secrets: Vec<(String, Option<i64>)> = open_json(row, 16, keyring, &aad(id, "secrets"))?;
    let schedule = match row.get_ref(14)?.as_str_or_null()? {
        None => None,
        Some(_) => {
            let delays: Vec<u64> = codec::from_json(row, 14)?;
            let delays = delays.into_iter().map(Duration::from_millis).collect();
            Some(codec::readable(14, RetrySchedule::try_new(delays))?)
        }
    };
    Ok(Endpoint {
        id,
        app: codec::id(row, 1)?,
        uid: row.get(2)?,
        url: row.get(3)?,
        description: row.get(4)?,
        event_types: codec::from_json(row, 5)?,
        channels: codec::from_json(row, 6)?,
        disabled: row.get(7)?,
        paused: row.get(8)?,
        throttle_rate: row.get(9)?,
        ordered: row.get(10)?,
        on_exhausted: if row.get(11)? {
            ExhaustedPolicy::Pause
        } else {
            ExhaustedPolicy::Skip
        },
        header_names: if row.get(12)? {
            HeaderNames::Svix
        } else {
            HeaderNames::Standard
        },
        timeout: row
            .get::<_, Option<i64>>(13)?
            .map(|millis| Duration::from_millis(millis.unsigned_abs())),
        retry_schedule: schedule,
        headers: headers
            .into_iter()
            .map(|(name, value)| (name, SecretString::from(value)))
            .collect(),
        secrets: secrets
            .into_iter()
            .map(|(text, expires_at)| EndpointSecret {
                text: SecretString::from(text),
                expires_at: expires_at.map(UnixMillis),
            })
            .collect(),
        metadata: codec::from_json(row, 17)?,
        created_at: codec::time(row, 18)?,
        updated_at: codec::time(row, 19)?,
    })
}

/// The statement's parameters are the same for an insert and an update.
fn execute(connection: &Connection, sql: &str, row: &StoredEndpoint) -> rusqlite::Result<usize> {
    let endpoint = &row.endpoint;
    let timeout = endpoint
        .timeout
        .map(|timeout| i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX));
    connection.prepare_cached(sql)?.execute(params![
        endpoint.id.as_bytes(),
        endpoint.app.as_bytes(),
        endpoint.uid,
        endpoint.url,
        endpoint.description,
        row.event_types,
        row.channels,
        endpoint.disabled,
        endpoint.paused,
        endpoint.throttle_rate,
        endpoint.ordered,
        endpoint.on_exhausted == ExhaustedPolicy::Pause,
        endpoint.header_names == HeaderNames::Svix,
        timeout,
        row.retry_schedule,
        row.headers,
        row.secrets,
        row.metadata,
        endpoint.updated_at.0,
        endpoint.created_at.0,
        i64::try_from(endpoint.memory_bytes()).unwrap_or(i64::MAX),
    ])
}

pub(crate) fn create(connection: &Connection, row: &StoredEndpoint) -> Fallible<Option<u64>> {
    let version = bump(connection, row.endpoint.app)?;
    if version.is_none() {
        return Ok(None);
    }
    let inserted = execute(
        connection,
        "INSERT INTO endpoints (id, app, uid, url, description, event_types, channels, disabled, paused,
            throttle_rate, ordered, on_exhausted, header_names, timeout_ms, retry_schedule, headers, secrets, metadata,
            updated_at, created_at, memory_bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)",
        row,
    );
    match inserted {
        Ok(_) => Ok(version),
        Err(error) if is_conflict(&error) => {
            let taken = connection
                .prepare_cached("SELECT 1 FROM endpoints WHERE id = ?1")?
                .exists([row.endpoint.id.as_bytes()])?;
            Err(StoreError::Conflict(if taken { "id" } else { "uid" }).into())
        }
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn update(
    connection: &Connection,
    row: &StoredEndpoint,
    was: UnixMillis,
) -> Fallible<Option<u64>> {
    let found: Option<i64> = connection
        .prepare_cached("SELECT updated_at FROM endpoints WHERE id = ?1 AND app = ?2 AND deleted_at IS NULL")?
        .query_row(
            params![row.endpoint.id.as_bytes(), row.endpoint.app.as_bytes()],
            |found| found.get(0),
        )
        .optional()?;
    match found {
        None => return Ok(None),
        Some(found) if found != was.0 => return Err(StoreError::Changed.into()),
        Some(_) => {}
    }
    let updated = execute(
        connection,
        // An endpoint that comes back from being disabled or paused starts with a clean record: otherwise its next failure
        // might disable it, with all that waits. `?20` is the insert's creation time, which never changes.
        "UPDATE endpoints SET uid = ?3, url = ?4, description = ?5, event_types = ?6, channels = ?7,
            failing_since = CASE WHEN NOT ?8 AND (disabled OR paused AND NOT ?9) THEN NULL ELSE failing_since END,
            disabled = ?8, paused = ?9, throttle_rate = ?10, ordered = ?11, on_exhausted = ?12, header_names = ?13,
            timeout_ms = ?14, retry_schedule = ?15, headers = ?16, secrets = ?17, metadata = ?18, updated_at = ?19,
            memory_bytes = ?21
         WHERE id = ?1 AND app = ?2 AND deleted_at IS NULL AND ?20 IS NOT NULL",
        row,
    );
    match updated {
        Ok(_) => {}
        Err(error) if is_conflict(&error) => return Err(StoreError::Conflict("uid").into()),
        Err(error) => return Err(error.into()),
    }
    waiting::reconsider(connection, row.endpoint.id)?;
    bump(connection, row.endpoint.app)
}

pub(crate) fn delete(
    connection: &Connection,
    app: AppId,
    id: EndpointId,
    at: UnixMillis,
) -> Fallible<Option<u64>> {
    let changed = connection
        .prepare_cached(
            "UPDATE endpoints SET deleted_at = ?3, updated_at = ?3
             WHERE id = ?1 AND app = ?2 AND deleted_at IS NULL",
        )?
        .execute(params![id.as_bytes(), app.as_bytes(), at.0])?;
    if changed == 0 {
        return Ok(None);
    }
    waiting::reconsider(connection, id)?;
    bump(connection, app)
}

pub(crate) fn find(
    connection: &Connection,
    keyring: &Keyring,
    app: AppId,
    endpoint: &EndpointRef,
) -> Fallible<Option<Endpoint>> {
    let found = match endpoint {
        EndpointRef::Id(id) => connection
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM endpoints WHERE id = ?2 AND app = ?1 AND deleted_at IS NULL"
            ))?
            .query_row(params![app.as_bytes(), id.as_bytes()], |row| read(row, keyring)),
        EndpointRef::Uid(uid) => connection
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM endpoints WHERE app = ?1 AND uid = ?2 AND deleted_at IS NULL"
            ))?
            .query_row(params![app.as_bytes(), uid], |row| read(row, keyring)),
    };
    Ok(found.optional()?)
}

pub(crate) fn list(
    connection: &Connection,
    keyring: &Keyring,
    app: AppId,
    page: &Page<EndpointId>,
) -> Fallible<Vec<Endpoint>> {
    let walk = Walk::of(page);
    let sql = format!(
        "SELECT {COLUMNS} FROM endpoints
         WHERE app = ?1 AND deleted_at IS NULL AND id >= ?2 AND id < ?3
         ORDER BY id {} LIMIT ?4",
        walk.order()
    );
    let (from, to) = walk.bounds(
        page.after.as_ref().map(EndpointId::as_bytes),
        TimeRange::default(),
    );
    let rows = connection
        .prepare_cached(&sql)?
        .query_map(params![app.as_bytes(), from, to, walk.rows], |row| {
            read(row, keyring)
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(walk.arrange(rows))
}

/// Endpoints of an application, counted up to `most`.
pub(crate) fn in_use(connection: &Connection, app: AppId) -> Fallible<EndpointUse> {
    let sql = "SELECT count(*), coalesce(sum(memory_bytes), 0) FROM endpoints WHERE app = ?1 AND deleted_at IS NULL";
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement.query_row([app.as_bytes()], |row| {
        Ok(EndpointUse {
            count: row.get(0)?,
            bytes: row.get::<_, i64>(1)?.unsigned_abs(),
        })
    })?;
    Ok(found)
}

/// Every endpoint of an application, by id.
pub(crate) fn all_of(connection: &Connection, keyring: &Keyring, app: AppId) -> Fallible<Vec<Endpoint>> {
    let endpoints = connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM endpoints WHERE app = ?1 AND deleted_at IS NULL ORDER BY id LIMIT ?2"
        ))?
        .query_map(params![app.as_bytes(), SNAPSHOT_MAX], |row| read(row, keyring))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(endpoints)
}

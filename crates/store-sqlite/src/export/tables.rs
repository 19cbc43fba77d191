//! How a portion of each kind of rows is read.

use postrider_model::{CancelReason, Claim, EndpointId, UnixMillis};
use postrider_secrets::Keyring;
use postrider_store::fold::{AttemptPut, DeliveryPut, StateCounts, WaitingPut};
use postrider_store::transfer::{MovedApplication, MovedCounter, MovedEndpoint, Portion};
use postrider_store::{MessageRow, StoreError};
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params_from_iter};

use super::stages::Part;
use crate::codec;
use crate::config::{apps, endpoints, event_types, keys};
use crate::error::Fallible;
use crate::log::{attempts, messages};
use crate::upkeep::{parked, tasks};

/// Rows of a portion.
const ROWS_MAX: usize = 1_000;
/// A portion ends once its payloads and responses are so large.
const BYTES_MAX: usize = 8 * 1024 * 1024;

pub(super) fn applications(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = format!(
        "SELECT {}, deleted_at FROM applications WHERE id > ?1 ORDER BY id",
        apps::APP_COLUMNS
    );
    let (rows, last) = portion(connection, &sql, after, |row| {
        let (application, version) = apps::read_app(row)?;
        let moved = MovedApplication {
            application,
            version,
            deleted_at: codec::time_opt(row, 9)?,
        };
        Ok((moved, 0, place(row, [0])?))
    })?;
    Ok((Portion::Applications(rows), last))
}

pub(super) fn endpoints(connection: &Connection, keyring: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = format!(
        "SELECT {}, failing_since, deleted_at FROM endpoints WHERE id > ?1 ORDER BY id",
        endpoints::COLUMNS
    );
    let (rows, last) = portion(connection, &sql, after, |row| {
        let moved = MovedEndpoint {
            endpoint: endpoints::read(row, keyring)?,
            failing_since: named_time(row, "failing_since")?,
            deleted_at: named_time(row, "deleted_at")?,
        };
        Ok((moved, 0, place(row, [0])?))
    })?;
    Ok((Portion::Endpoints(rows), last))
}

pub(super) fn event_types(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = format!(
        "SELECT {} FROM event_types WHERE name > ?1 ORDER BY name",
        event_types::EVENT_TYPE_COLUMNS
    );
    let (rows, last) = portion(connection, &sql, after, |row| {
        let event_type = event_types::read_event_type(row)?;
        let bytes = event_type.schemas.as_ref().map_or(0, String::len);
        Ok((event_type, bytes, place(row, [1])?))
    })?;
    Ok((Portion::EventTypes(rows), last))
}

pub(super) fn keys(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = format!(
        "SELECT {} FROM api_keys WHERE id > ?1 ORDER BY id",
        keys::KEY_COLUMNS
    );
    let (rows, last) = portion(connection, &sql, after, |row| {
        Ok((keys::read_key(row)?, 0, place(row, [0])?))
    })?;
    Ok((Portion::Keys(rows), last))
}

pub(super) fn sequence(connection: &Connection, _: &Keyring, _: &[Value]) -> Fallible<Part> {
    let last = connection.query_row("SELECT last_seq FROM progress", [], |row| row.get(0))?;
    Ok((Portion::Sequence(last), None))
}

pub(super) fn messages(connection: &Connection, keyring: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = format!(
        "SELECT {}, b.sealed FROM messages m LEFT JOIN bodies b ON b.n = m.body WHERE m.id > ?1 ORDER BY m.id",
        messages::MESSAGE_COLUMNS
    );
    let (rows, last) = portion(connection, &sql, after, |row| {
        let (mut message, payload_gone) = messages::read_message(row, 0)?;
        if !payload_gone {
            let sealed = row.get_ref("sealed")?.as_blob_or_null();
            let sealed = sealed.map_err(rusqlite::Error::from)?;
            let sealed =
                sealed.ok_or_else(|| StoreError::Corrupt(format!("{} lost its payload", message.id)))?;
            message.payload = messages::open_body(keyring, message.id, sealed)?;
        }
        let bytes = message.payload.len();
        Ok((
            MessageRow {
                message,
                payload_gone,
            },
            bytes,
            place(row, [0])?,
        ))
    })?;
    Ok((Portion::Messages(rows), last))
}

pub(super) fn deliveries(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    // The application is the message's. What came late has no message any more, and perhaps no endpoint: only an attempt of
    // its own tells then, and without one it is nobody's.
    let sql = "SELECT d.message, d.endpoint, d.id, d.state, d.attempts, d.origin, d.cancelled,
            coalesce(m.app, e.app, (SELECT a.app FROM attempts a WHERE a.message = d.message AND a.delivery = d.id),
                     zeroblob(16))
         FROM deliveries d LEFT JOIN messages m ON m.id = d.message LEFT JOIN endpoints e ON e.id = d.endpoint
         WHERE (d.message, d.endpoint, d.id) > (?1, ?2, ?3) ORDER BY d.message, d.endpoint, d.id";
    let (rows, last) = portion(connection, sql, after, |row| {
        let cancelled: Option<i16> = row.get(6)?;
        let delivery = DeliveryPut {
            id: codec::id(row, 2)?,
            message: codec::id(row, 0)?,
            endpoint: codec::id(row, 1)?,
            app: codec::id(row, 7)?,
            state: codec::state(row, 3)?,
            attempts: row.get(4)?,
            trigger: codec::origin(row, 5)?,
            cancelled: cancelled.and_then(CancelReason::from_stored),
            is_new: true,
        };
        Ok((delivery, 0, place(row, [0, 1, 2])?))
    })?;
    Ok((Portion::Deliveries(rows), last))
}

pub(super) fn attempts(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = format!(
        "SELECT {}, a.app FROM attempts a WHERE (a.message, a.id) > (?1, ?2) ORDER BY a.message, a.id",
        attempts::COLUMNS
    );
    let (rows, last) = portion(connection, &sql, after, |row| {
        let read = attempts::read(row)?;
        let bytes = read.attempt.response.len() + read.attempt.url.len();
        let attempt = AttemptPut {
            attempt: read.attempt,
            delivery: read.delivery,
            message: read.message,
            endpoint: read.endpoint,
            app: codec::id(row, row.as_ref().column_index("app")?)?,
            trigger: read.trigger,
        };
        Ok((attempt, bytes, place(row, [1, 0])?))
    })?;
    Ok((Portion::Attempts(rows), last))
}

pub(super) fn waiting(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = "SELECT delivery, endpoint, app, message, origin, due_at, reason, run, attempts, leased, leased_at, seq
         FROM waiting WHERE delivery > ?1 ORDER BY delivery";
    let now = UnixMillis::now();
    let (rows, last) = portion(connection, sql, after, |row| {
        let was_leased: bool = row.get(9)?;
        let put = WaitingPut {
            delivery: codec::id(row, 0)?,
            endpoint: codec::id(row, 1)?,
            app: codec::id(row, 2)?,
            message: codec::id(row, 3)?,
            trigger: codec::origin(row, 4)?,
            due_at: if was_leased { now } else { codec::time(row, 5)? },
            reason: codec::reason(row, 6)?,
            run: row.get(7)?,
            attempts: row.get(8)?,
            leased: false,
            leased_at: codec::time_opt(row, 10)?,
            seq: row.get(11)?,
        };
        Ok((put, 0, place(row, [0])?))
    })?;
    Ok((Portion::Waiting(rows), last))
}

pub(super) fn counters(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = "SELECT endpoint, hour, pending, retrying, delivered, exhausted, cancelled FROM counters
         WHERE (endpoint, hour) > (?1, ?2) ORDER BY endpoint, hour";
    let (rows, last) = portion(connection, sql, after, |row| {
        let endpoint: EndpointId = codec::id(row, 0)?;
        let counter = MovedCounter {
            endpoint,
            hour: row.get(1)?,
            counts: StateCounts {
                pending: row.get(2)?,
                retrying: row.get(3)?,
                delivered: row.get(4)?,
                exhausted: row.get(5)?,
                cancelled: row.get(6)?,
            },
        };
        Ok((counter, 0, place(row, [0, 1])?))
    })?;
    Ok((Portion::Counters(rows), last))
}

pub(super) fn claims(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = format!("SELECT key, {CLAIM_COLUMNS} FROM claims WHERE key > ?1 AND {STANDING} ORDER BY key");
    claims_of(connection, &sql, after)
}

/// After those that are merged: the first claim of a key is the one that counts.
pub(super) fn recent_claims(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = format!("SELECT n, {CLAIM_COLUMNS} FROM recent_claims WHERE n > ?1 AND {STANDING} ORDER BY n");
    claims_of(connection, &sql, after)
}

const CLAIM_COLUMNS: &str = "key, resource, fingerprint, expires_at";
/// What has ended must not keep out what came after it.
const STANDING: &str = "expires_at > unixepoch() * 1000";

fn claims_of(connection: &Connection, sql: &str, after: &[Value]) -> Fallible<Part> {
    let (rows, last) = portion(connection, sql, after, |row| {
        let claim = Claim {
            key: row.get(1)?,
            resource: row.get(2)?,
            fingerprint: row.get(3)?,
            expires_at: codec::time(row, 4)?,
        };
        Ok((claim, 0, place(row, [0])?))
    })?;
    Ok((Portion::Claims(rows), last))
}

pub(super) fn tasks(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = format!(
        "SELECT {} FROM tasks WHERE id > ?1 ORDER BY id",
        tasks::rows::TASK_COLUMNS
    );
    let (rows, last) = portion(connection, &sql, after, |row| {
        Ok((tasks::rows::read_task(row)?, 0, place(row, [0])?))
    })?;
    Ok((Portion::Tasks(rows), last))
}

pub(super) fn parked(connection: &Connection, keyring: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = "SELECT id, kind, reason, bytes, at FROM parked WHERE id > ?1 ORDER BY id";
    let (rows, last) = portion(connection, sql, after, |row| {
        let parked = parked::read_parked(row, keyring)?;
        if parked.sealed_away {
            let what = format!(
                "what is parked as {} cannot be opened: put back the key that sealed it, or drop it",
                parked.id
            );
            return Err(StoreError::Corrupt(what).into());
        }
        let bytes = parked.bytes.len();
        Ok((parked, bytes, place(row, [0])?))
    })?;
    Ok((Portion::Parked(rows), last))
}

/// Reads a portion with a statement whose parameters are the place and the limit. `read` returns a row, its bytes and
/// its place.
fn portion<T>(
    connection: &Connection,
    sql: &str,
    after: &[Value],
    read: impl Fn(&Row<'_>) -> Fallible<(T, usize, Vec<Value>)>,
) -> Fallible<(Vec<T>, Option<Vec<Value>>)> {
    let mut statement = connection.prepare_cached(&format!("{sql} LIMIT {ROWS_MAX}"))?;
    let mut rows = statement.query(params_from_iter(after))?;
    let (mut out, mut size, mut last) = (Vec::new(), 0, None);
    while let Some(row) = rows.next()? {
        let (value, bytes, place) = read(row)?;
        out.push(value);
        size += bytes;
        last = Some(place);
        if size >= BYTES_MAX {
            return Ok((out, last));
        }
    }
    let more = out.len() == ROWS_MAX;
    Ok((out, last.filter(|_| more)))
}

/// By name: what comes before it is another file's list of columns.
fn named_time(row: &Row<'_>, column: &str) -> Fallible<Option<UnixMillis>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(UnixMillis))
}

/// The columns that say where a row is.
fn place<const N: usize>(row: &Row<'_>, columns: [usize; N]) -> Fallible<Vec<Value>> {
    let values = columns.into_iter().map(|column| row.get(column));
    Ok(values.collect::<rusqlite::Result<_>>()?)
}

//! The whole file, portion by portion, for a move to another store.
//!
//! It reads over a connection of its own that holds the file exclusively, so nobody else uses it before the move is
//! over; it writes nothing. A portion is bounded in rows and in bytes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use postrider_model::{CancelReason, Claim, EndpointId, UnixMillis};
use postrider_secrets::Keyring;
use postrider_store::fold::{AttemptPut, DeliveryPut, StateCounts, WaitingPut};
use postrider_store::transfer::{MovedApplication, MovedCounter, MovedEndpoint, Portion};
use postrider_store::{MessageRow, StoreError};
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, params_from_iter};

use crate::config::{apps, endpoints, event_types, keys};
use crate::error::{Fail, Fallible};
use crate::log::{attempts, messages};
use crate::upkeep::{parked, tasks};
use crate::{codec, schema};

/// Rows of a portion.
const ROWS_MAX: usize = 1_000;
/// A portion ends once its payloads and responses are so large.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// Why a file cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A process has it open.
    #[error("{} is in use; stop Postrider, and every other program that has it open, first", .0.display())]
    InUse(PathBuf),
    /// Anything else.
    #[error("{} cannot be read", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// A file on its way out.
pub struct Export {
    path: PathBuf,
    connection: Connection,
    keyring: Arc<Keyring>,
    stage: usize,
    after: Vec<Value>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export")
            .field("path", &self.path)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

/// The rows after a place, and the place of the last one, unless they are the last ones.
type Part = (Portion, Option<Vec<Value>>);

/// A kind of rows: where it starts, and how a portion of it is read.
struct Stage {
    start: fn() -> Vec<Value>,
    read: fn(&Connection, &Keyring, &[Value]) -> Fallible<Part>,
}

const STAGES: [Stage; 13] = [
    Stage {
        start: first_id,
        read: applications,
    },
    Stage {
        start: first_id,
        read: read_endpoints,
    },
    Stage {
        start: || vec![Value::Text(String::new())],
        read: event_types,
    },
    Stage {
        start: first_id,
        read: keys,
    },
    Stage {
        start: Vec::new,
        read: sequence,
    },
    Stage {
        start: first_id,
        read: messages,
    },
    Stage {
        start: || {
            vec![
                Value::Blob(Vec::new()),
                Value::Blob(Vec::new()),
                Value::Blob(Vec::new()),
            ]
        },
        read: deliveries,
    },
    Stage {
        start: || vec![Value::Blob(Vec::new()), Value::Blob(Vec::new())],
        read: read_attempts,
    },
    Stage {
        start: first_id,
        read: waiting,
    },
    Stage {
        start: || vec![Value::Blob(Vec::new()), Value::Integer(i64::MIN)],
        read: counters,
    },
    Stage {
        start: first_id,
        read: claims,
    },
    Stage {
        start: first_id,
        read: tasks,
    },
    Stage {
        start: || vec![Value::Integer(i64::MIN)],
        read: parked,
    },
];

fn first_id() -> Vec<Value> {
    vec![Value::Blob(Vec::new())]
}

impl Export {
    /// Takes the file for itself until it is dropped. Blocks for a moment.
    ///
    /// # Errors
    /// [`ExportError::InUse`] while another process has it open; [`ExportError::Store`] when there is none, or it has
    /// another schema than this program's.
    pub fn open(path: &Path, keyring: Arc<Keyring>) -> Result<Self, ExportError> {
        let failed = |fail: Fail| match fail {
            Fail::Sql(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                ExportError::InUse(path.to_owned())
            }
            fail => ExportError::Store {
                path: path.to_owned(),
                source: fail.into(),
            },
        };
        let connection = hold(path).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            connection,
            keyring,
            stage: 0,
            after: (STAGES[0].start)(),
        })
    }

    /// The next portion; `None` after the last. Blocks while it reads.
    ///
    /// # Errors
    /// [`ExportError::Store`] when rows cannot be read or opened.
    pub fn next_portion(&mut self) -> Result<Option<Portion>, ExportError> {
        let Some(stage) = STAGES.get(self.stage) else {
            return Ok(None);
        };
        let (portion, last) = (stage.read)(&self.connection, &self.keyring, &self.after).map_err(|fail| {
            ExportError::Store {
                path: self.path.clone(),
                source: fail.into(),
            }
        })?;
        match last {
            Some(after) => self.after = after,
            None => {
                self.stage += 1;
                self.after = STAGES
                    .get(self.stage)
                    .map_or_else(Vec::new, |stage| (stage.start)());
            }
        }
        Ok(Some(portion))
    }
}

/// Opens the file exclusively. In WAL mode every connection holds a shared lock for as long as it is open, so this
/// fails at once while there is another.
fn hold(path: &Path) -> Fallible<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.pragma_update(None, "busy_timeout", 0)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    schema::check(&connection)?;
    // A transaction that writes takes the lock also where the file is not in WAL mode.
    connection.execute_batch("BEGIN IMMEDIATE; COMMIT")?;
    Ok(connection)
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

fn applications(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
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

fn read_endpoints(connection: &Connection, keyring: &Keyring, after: &[Value]) -> Fallible<Part> {
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

fn event_types(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
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

fn keys(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = format!(
        "SELECT {} FROM api_keys WHERE id > ?1 ORDER BY id",
        keys::KEY_COLUMNS
    );
    let (rows, last) = portion(connection, &sql, after, |row| {
        Ok((keys::read_key(row)?, 0, place(row, [0])?))
    })?;
    Ok((Portion::Keys(rows), last))
}

fn sequence(connection: &Connection, _: &Keyring, _: &[Value]) -> Fallible<Part> {
    let last = connection.query_row("SELECT last_seq FROM progress", [], |row| row.get(0))?;
    Ok((Portion::Sequence(last), None))
}

fn messages(connection: &Connection, keyring: &Keyring, after: &[Value]) -> Fallible<Part> {
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

fn deliveries(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    // The application is the message's; without the message, the endpoint's, whose row outlives it.
    let sql = "SELECT d.message, d.endpoint, d.id, d.state, d.attempts, d.origin, d.cancelled,
            coalesce(m.app, e.app)
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

fn read_attempts(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
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

fn waiting(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
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

fn counters(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
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

fn claims(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = "SELECT key, resource, fingerprint, expires_at FROM claims WHERE key > ?1 ORDER BY key";
    let (rows, last) = portion(connection, sql, after, |row| {
        let claim = Claim {
            key: row.get(0)?,
            resource: row.get(1)?,
            fingerprint: row.get(2)?,
            expires_at: codec::time(row, 3)?,
        };
        Ok((claim, 0, place(row, [0])?))
    })?;
    Ok((Portion::Claims(rows), last))
}

fn tasks(connection: &Connection, _: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = format!(
        "SELECT {} FROM tasks WHERE id > ?1 ORDER BY id",
        tasks::rows::TASK_COLUMNS
    );
    let (rows, last) = portion(connection, &sql, after, |row| {
        Ok((tasks::rows::read_task(row)?, 0, place(row, [0])?))
    })?;
    Ok((Portion::Tasks(rows), last))
}

fn parked(connection: &Connection, keyring: &Keyring, after: &[Value]) -> Fallible<Part> {
    let sql = "SELECT id, kind, reason, bytes, at FROM parked WHERE id > ?1 ORDER BY id";
    let (rows, last) = portion(connection, sql, after, |row| {
        let parked = parked::read_parked(row, keyring)?;
        let bytes = parked.bytes.len();
        Ok((parked, bytes, place(row, [0])?))
    })?;
    Ok((Portion::Parked(rows), last))
}

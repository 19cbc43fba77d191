//! `UpkeepStore`: sweeps, tasks, parked rows, closing. Retention is in `retention`, the work of tasks in `tasks`.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_model::{CancelReason, EndpointId, TaskId, UnixMillis};
use postrider_secrets::Keyring;
use postrider_store::{
    OrphanReport, ParkedRow, PoolKind, PoolUse, ResealCursor, ResealReport, RetentionReport, StoreError,
    SweepReport, TaskKind, TaskRow, TaskState, UpkeepStore, parked_digest,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::cancel::{self, Waits};
use crate::codec;
use crate::connection::open_writer;
use crate::error::{Fallible, unavailable};
use crate::{SqliteStore, retention, schema, tasks};

/// Doomed endpoints that one sweep visits.
const DOOMED_MAX: u32 = 64;
/// A waiting row whose message is missing for longer is an alarm.
const ORPHAN_AFTER: Duration = Duration::from_secs(300);
/// Rows marked as orphans that one sweep looks at.
const ORPHANS_MAX: u32 = 1_000;
/// Parked rows that are kept; the oldest go first.
const PARKED_MAX: i64 = 10_000;
/// Bytes of a parked row that are kept.
const PARKED_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Sealed together with the kind, since the row has no number yet.
const PARKED_AAD: &str = "parked/";

pub(crate) fn read_task(row: &Row<'_>) -> rusqlite::Result<TaskRow> {
    Ok(TaskRow {
        id: codec::id(row, 0)?,
        kind: match row.get::<_, u8>(1)? {
            1 => TaskKind::Recover,
            2 => TaskKind::Replay,
            other => return Err(rusqlite::Error::IntegralValueOutOfRange(1, i64::from(other))),
        },
        app: codec::id(row, 2)?,
        endpoint: codec::id(row, 3)?,
        since: codec::time(row, 4)?,
        until: codec::time(row, 5)?,
        cursor: codec::id_opt(row, 6)?,
        state: match row.get::<_, u8>(7)? {
            0 => TaskState::Running,
            1 => TaskState::Finished,
            2 => TaskState::Failed,
            other => return Err(rusqlite::Error::IntegralValueOutOfRange(7, i64::from(other))),
        },
        updated_at: codec::time(row, 8)?,
    })
}

pub(crate) const TASK_COLUMNS: &str = "id, kind, app, endpoint, since, until, cursor, state, updated_at";

fn create_task(connection: &Connection, task: &TaskRow) -> Fallible<()> {
    // Made again after a crash, a task is the same task and keeps its cursor.
    connection
        .prepare_cached(&format!(
            "INSERT INTO tasks ({TASK_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT (id) DO NOTHING"
        ))?
        .execute(params![
            task.id.as_bytes(),
            task.kind as u8,
            task.app.as_bytes(),
            task.endpoint.as_bytes(),
            task.since.0,
            task.until.0,
            task.cursor.as_ref().map(|cursor| *cursor.as_bytes()),
            task.state as u8,
            task.updated_at.0
        ])?;
    Ok(())
}

/// Tasks that go on, oldest first.
pub(crate) fn running_tasks(connection: &Connection, limit: u32) -> Fallible<Vec<TaskRow>> {
    let tasks = connection
        .prepare_cached(&format!(
            "SELECT {TASK_COLUMNS} FROM tasks WHERE state = 0 ORDER BY id LIMIT ?1"
        ))?
        .query_map([limit], read_task)?
        .collect::<rusqlite::Result<_>>()?;
    Ok(tasks)
}

fn sweep(connection: &Connection, limit: u32) -> Fallible<SweepReport> {
    Ok(SweepReport {
        cancelled: sweep_doomed(connection, limit)?,
        recovered: tasks::advance(connection, limit)?,
        orphans: count_orphans(connection)?,
    })
}

/// Cancels what waits for disabled and deleted endpoints. A lease that is out does not save its row: the state is
/// final, and what the outcome adds is its attempt.
fn sweep_doomed(connection: &Connection, limit: u32) -> Fallible<u64> {
    let endpoints = connection
        .prepare_cached("SELECT endpoint FROM backlog WHERE doomed = 1 LIMIT ?1")?
        .query_map([DOOMED_MAX], |row| codec::id(row, 0))?
        .collect::<rusqlite::Result<Vec<EndpointId>>>()?;
    let mut cancelled = 0;
    let mut room = u64::from(limit);
    for endpoint in endpoints {
        let Some(why) = why_doomed(connection, endpoint)? else {
            // Enabled again: its rows live.
            crate::waiting::reconsider(connection, endpoint)?;
            continue;
        };
        let rows = connection
            .prepare_cached(&format!(
                "SELECT {} FROM waiting w WHERE w.endpoint = ?1 LIMIT ?2",
                Waits::COLUMNS
            ))?
            .query_map(
                params![endpoint.as_bytes(), i64::try_from(room).unwrap_or(i64::MAX)],
                Waits::read,
            )?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        cancelled += cancel::cancel(connection, &rows, why)?;
        let seen = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        if seen < room {
            connection
                .prepare_cached("DELETE FROM backlog WHERE endpoint = ?1")?
                .execute([endpoint.as_bytes()])?;
        }
        room = room.saturating_sub(seen);
        if room == 0 {
            break;
        }
    }
    Ok(cancelled)
}

/// Why nothing may wait for an endpoint; `None` when it may.
fn why_doomed(connection: &Connection, endpoint: EndpointId) -> Fallible<Option<CancelReason>> {
    let found = connection
        .prepare_cached(
            "SELECT e.disabled, e.deleted_at IS NOT NULL, a.deleted_at IS NOT NULL
             FROM endpoints e LEFT JOIN applications a ON a.id = e.app WHERE e.id = ?1",
        )?
        .query_row([endpoint.as_bytes()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    Ok(match found {
        Some((_, _, true)) => Some(CancelReason::ApplicationDeleted),
        None | Some((_, true, _)) => Some(CancelReason::EndpointDeleted),
        Some((true, false, false)) => Some(CancelReason::EndpointDisabled),
        Some((false, false, false)) => None,
    })
}

fn count_orphans(connection: &Connection) -> Fallible<u64> {
    let before = UnixMillis::now().minus(ORPHAN_AFTER);
    let orphans = connection
        .prepare_cached(
            "SELECT message FROM waiting w INDEXED BY waiting_orphans WHERE orphan = 1
                AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.id = w.message) LIMIT ?1",
        )?
        .query_map([ORPHANS_MAX], |row| codec::id(row, 0))?
        .collect::<rusqlite::Result<Vec<postrider_model::MessageId>>>()?;
    let old = orphans
        .iter()
        .filter(|message| message.created_at() < before)
        .count();
    Ok(u64::try_from(old).unwrap_or(u64::MAX))
}

fn park(connection: &Connection, kind: &str, reason: &str, sealed: &[u8]) -> Fallible<()> {
    connection
        .prepare_cached("INSERT INTO parked (kind, reason, bytes, at) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![kind, reason, sealed, UnixMillis::now().0])?;
    connection
        .prepare_cached("DELETE FROM parked WHERE id <= ?1 - ?2")?
        .execute([connection.last_insert_rowid(), PARKED_MAX])?;
    Ok(())
}

pub(crate) fn parked_aad(kind: &str) -> String {
    format!("{PARKED_AAD}{kind}")
}

pub(crate) fn read_parked(row: &Row<'_>, keyring: &Keyring) -> rusqlite::Result<ParkedRow> {
    let kind: String = row.get(1)?;
    let sealed = row.get_ref(3)?.as_blob()?;
    let bytes = codec::readable(3, keyring.open(parked_aad(&kind).as_bytes(), sealed))?;
    Ok(ParkedRow {
        id: row.get(0)?,
        kind,
        reason: row.get(2)?,
        bytes: Bytes::from(bytes),
        at: codec::time(row, 4)?,
    })
}

#[async_trait]
impl UpkeepStore for SqliteStore {
    async fn migrate(&self) -> Result<(u32, u32), StoreError> {
        let path = self.path.clone();
        // On a connection of its own: a migration has its own transactions.
        let migrated = tokio::task::spawn_blocking(move || schema::migrate(&mut open_writer(&path)?));
        migrated
            .await
            .map_err(|_| unavailable("the migration panicked"))?
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        self.read(schema::check).await
    }

    /// The writer's one connection is its thread's for as long as that runs.
    fn pools(&self) -> [PoolUse; 2] {
        let (in_use, idle, waiting) = self.readers.usage();
        let read = PoolUse {
            kind: PoolKind::Read,
            in_use,
            idle,
            waiting,
        };
        let write = PoolUse {
            kind: PoolKind::Write,
            in_use: 1,
            idle: 0,
            waiting: self.writer.queued(),
        };
        [read, write]
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.read(|connection| Ok(connection.query_row("SELECT 1", [], |_| Ok(()))?))
            .await
    }

    async fn sweep(&self, limit: u32) -> Result<SweepReport, StoreError> {
        self.write(move |connection| sweep(connection, limit)).await
    }

    async fn retain(
        &self,
        payloads: Duration,
        log: Duration,
        limit: u32,
    ) -> Result<RetentionReport, StoreError> {
        self.write(move |connection| retention::retain(connection, payloads, log, limit))
            .await
    }

    async fn reseal(&self, cursor: ResealCursor, limit: u32) -> Result<ResealReport, StoreError> {
        self.reseal_chunk(cursor, limit).await
    }

    async fn create_task(&self, task: &TaskRow) -> Result<(), StoreError> {
        let task = task.clone();
        self.write(move |connection| create_task(connection, &task)).await
    }

    async fn task(&self, id: TaskId) -> Result<Option<TaskRow>, StoreError> {
        self.read(move |connection| {
            let task = connection
                .prepare_cached(&format!("SELECT {TASK_COLUMNS} FROM tasks WHERE id = ?1"))?
                .query_row([id.as_bytes()], read_task)
                .optional()?;
            Ok(task)
        })
        .await
    }

    async fn park(&self, kind: &str, reason: &str, bytes: &Bytes) -> Result<(), StoreError> {
        let kept = &bytes[..bytes.len().min(PARKED_BYTES_MAX)];
        let sealed = self.keyring.seal(parked_aad(kind).as_bytes(), kept);
        let (kind, reason) = (kind.to_owned(), reason.to_owned());
        self.write(move |connection| park(connection, &kind, &reason, &sealed))
            .await
    }

    async fn parked(&self, limit: u32) -> Result<Vec<ParkedRow>, StoreError> {
        let keyring = self.keyring.clone();
        self.read(move |connection| {
            let rows = connection
                .prepare_cached("SELECT id, kind, reason, bytes, at FROM parked ORDER BY id DESC LIMIT ?1")?
                .query_map([limit], |row| read_parked(row, &keyring))?
                .collect::<rusqlite::Result<_>>()?;
            Ok(rows)
        })
        .await
    }

    async fn parked_row(&self, id: i64) -> Result<Option<ParkedRow>, StoreError> {
        let keyring = self.keyring.clone();
        self.read(move |connection| {
            let row = connection
                .prepare_cached("SELECT id, kind, reason, bytes, at FROM parked WHERE id = ?1")?
                .query_row([id], |row| read_parked(row, &keyring))
                .optional()?;
            Ok(row)
        })
        .await
    }

    async fn parked_count(&self) -> Result<u64, StoreError> {
        self.read(|connection| {
            let count: i64 = connection
                .prepare_cached("SELECT count(*) FROM parked")?
                .query_row([], |row| row.get(0))?;
            Ok(count.unsigned_abs())
        })
        .await
    }

    async fn unpark(&self, id: i64) -> Result<Option<ParkedRow>, StoreError> {
        let keyring = self.keyring.clone();
        self.write(move |connection| {
            let row = connection
                .prepare_cached("DELETE FROM parked WHERE id = ?1 RETURNING id, kind, reason, bytes, at")?
                .query_row([id], |row| read_parked(row, &keyring))
                .optional()?;
            Ok(row)
        })
        .await
    }

    async fn close(&self) {
        self.readers.close();
        self.writer.close().await;
    }
}

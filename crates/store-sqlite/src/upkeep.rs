//! `UpkeepStore`: sweeps, retention, tasks, parked rows, closing.

pub(crate) mod by_time;
pub(crate) mod parked;
mod retain;
mod sweep;
pub(crate) mod tasks;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_model::{AppId, TaskId};
use postrider_store::{
    OrphanReport, ParkedRow, Part, PoolKind, PoolUse, ResealCursor, ResealReport, RetentionReport,
    StoreError, SweepReport, TaskRow, UpkeepStore, parked_digest,
};
use rusqlite::OptionalExtension;

use self::parked::{PARKED_BYTES_MAX, parked_aad, read_parked};
use self::tasks::rows;
use crate::connection::open_writer;
use crate::error::unavailable;
use crate::{SqliteStore, schema};

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
        // Apart: a task that fails undoes nothing else.
        let report = self
            .write(move |connection| sweep::sweep_doomed(connection, limit))
            .await?;
        report.with_tasks(tasks::advance(self, limit).await)
    }

    async fn orphans(&self, cancel_after: Option<Duration>, limit: u32) -> Result<OrphanReport, StoreError> {
        self.write(move |connection| sweep::orphans(connection, cancel_after, limit))
            .await
    }

    async fn retain(
        &self,
        payloads: Duration,
        log: Duration,
        limit: u32,
    ) -> Result<RetentionReport, StoreError> {
        let ended = Arc::clone(&self.ended_claims);
        self.write(move |connection| retain::retain(connection, payloads, log, limit, &ended))
            .await
    }

    async fn reseal(&self, cursor: ResealCursor, limit: u32) -> Result<ResealReport, StoreError> {
        self.reseal_chunk(cursor, limit).await
    }

    async fn create_task(&self, task: &TaskRow) -> Result<(), StoreError> {
        let task = task.clone();
        self.write(move |connection| rows::create_task(connection, &task))
            .await
    }

    async fn running_tasks(&self, app: AppId, most: u32) -> Result<u32, StoreError> {
        self.read(move |connection| rows::count_running(connection, app, most))
            .await
    }

    async fn task(&self, id: TaskId) -> Result<Option<TaskRow>, StoreError> {
        self.read(move |connection| {
            let task = connection
                .prepare_cached(&format!("SELECT {} FROM tasks WHERE id = ?1", rows::TASK_COLUMNS))?
                .query_row([id.as_bytes()], rows::read_task)
                .optional()?;
            Ok(task)
        })
        .await
    }

    async fn park(&self, kind: &str, reason: &str, bytes: &Bytes) -> Result<bool, StoreError> {
        let digest = parked_digest(kind, bytes);
        let kept = &bytes[..bytes.len().min(PARKED_BYTES_MAX)];
        let sealed = self.keyring.seal(parked_aad(kind).as_bytes(), kept);
        let (kind, reason) = (kind.to_owned(), reason.to_owned());
        self.write(move |connection| parked::park(connection, &kind, &reason, &sealed, digest))
            .await
    }

    async fn parked(&self, limit: u32, before: Option<i64>) -> Result<Part<ParkedRow, i64>, StoreError> {
        let keyring = self.keyring.clone();
        self.list(move |connection| parked::list(connection, &keyring, limit, before))
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

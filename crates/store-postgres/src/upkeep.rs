//! Schema, sweeps, retention, background tasks, parked records.

mod by_time;
pub(crate) mod cancel;
mod retain;
mod sweep;
mod tasks;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use postrider_model::{AppId, TaskId, UnixMillis};
use postrider_store::{
    OrphanReport, PAGE_PAYLOAD_BYTES, ParkedRow, Part, PoolKind, PoolUse, ResealCursor, ResealReport,
    RetentionReport, StoreError, SweepReport, TaskRow, UpkeepStore, parked_digest,
};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::error::Work;
use crate::row::clean;
use crate::seal::Sealer;
use crate::{PostgresStore, reseal};

/// Most bytes of a parked frame that are kept.
const PARKED_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long connections have to come back at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

#[async_trait]
impl UpkeepStore for PostgresStore {
    async fn migrate(&self) -> Result<(u32, u32), StoreError> {
        self.migrate_schema().await
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        self.reading(self.verify_schema()).await
    }

    fn pools(&self) -> [PoolUse; 2] {
        [
            self.reads.usage(PoolKind::Read, &self.read),
            self.writes.usage(PoolKind::Write, &self.write),
        ]
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.reading(async {
            sqlx::query("SELECT 1").execute(&self.read).await?;
            Ok(())
        })
        .await
    }

    async fn sweep(&self, limit: u32) -> Result<SweepReport, StoreError> {
        let limit = i64::from(limit.max(1));
        let report = self.writing(sweep::cancel_disabled(self, limit)).await?;
        report.with_tasks(self.writing(tasks::advance(self, limit)).await)
    }

    async fn orphans(&self, cancel_after: Option<Duration>, limit: u32) -> Result<OrphanReport, StoreError> {
        self.writing(sweep::orphans(self, cancel_after, i64::from(limit.max(1))))
            .await
    }

    async fn retain(
        &self,
        payloads: Duration,
        log: Duration,
        limit: u32,
    ) -> Result<RetentionReport, StoreError> {
        self.writing(retain::retain(self, payloads, log, i64::from(limit.max(1))))
            .await
    }

    async fn reseal(&self, cursor: ResealCursor, limit: u32) -> Result<ResealReport, StoreError> {
        self.writing(reseal::chunk(self, cursor, i64::from(limit.max(1))))
            .await
    }

    async fn create_task(&self, task: &TaskRow) -> Result<(), StoreError> {
        self.writing(tasks::rows::create(self, task)).await
    }

    async fn running_tasks(&self, app: AppId, most: u32) -> Result<u32, StoreError> {
        self.reading(tasks::rows::count_running(self, app, most)).await
    }

    async fn task(&self, id: TaskId) -> Result<Option<TaskRow>, StoreError> {
        self.reading(tasks::rows::load(self, id)).await
    }

    async fn park(&self, kind: &str, reason: &str, bytes: &Bytes) -> Result<bool, StoreError> {
        self.writing(async {
            let done = sqlx::query(
                "INSERT INTO parked (kind, reason, bytes, at, digest) VALUES ($1, $2, $3, now_ms(), $4) \
                 ON CONFLICT DO NOTHING",
            )
            .bind(clean(kind))
            .bind(clean(reason))
            .bind(self.sealer.parked(&bytes[..bytes.len().min(PARKED_BYTES_MAX)]))
            .bind(parked_digest(kind, bytes).as_slice())
            .execute(&self.write)
            .await?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    async fn parked(&self, limit: u32, before: Option<i64>) -> Result<Part<ParkedRow, i64>, StoreError> {
        self.reading(parked(self, limit, before)).await
    }

    async fn parked_row(&self, id: i64) -> Result<Option<ParkedRow>, StoreError> {
        self.reading(async {
            let row = sqlx::query("SELECT id, kind, reason, bytes, at FROM parked WHERE id = $1")
                .bind(id)
                .fetch_optional(&self.read)
                .await?;
            row.as_ref().map(|row| decode(&self.sealer, row)).transpose()
        })
        .await
    }

    async fn parked_count(&self) -> Result<u64, StoreError> {
        self.reading(async {
            let count: i64 = sqlx::query_scalar("SELECT count(*) FROM parked")
                .fetch_one(&self.read)
                .await?;
            Ok(count.unsigned_abs())
        })
        .await
    }

    async fn unpark(&self, id: i64) -> Result<Option<ParkedRow>, StoreError> {
        self.writing(async {
            let row = sqlx::query("DELETE FROM parked WHERE id = $1 RETURNING id, kind, reason, bytes, at")
                .bind(id)
                .fetch_optional(&self.write)
                .await?;
            row.as_ref().map(|row| decode(&self.sealer, row)).transpose()
        })
        .await
    }

    async fn close(&self) {
        // A connection whose server vanished in the middle of a statement comes back when TCP gives it up.
        let closed = async { tokio::join!(self.read.close(), self.write.close()) };
        let _ = tokio::time::timeout(CLOSE_LIMIT, closed).await;
    }
}

/// Rows until there are `limit`, or their bytes are as many as a page may have.
async fn parked(store: &PostgresStore, limit: u32, before: Option<i64>) -> Work<Part<ParkedRow, i64>> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut rows =
        sqlx::query("SELECT id, kind, reason, bytes, at FROM parked WHERE id < $1 ORDER BY id DESC LIMIT $2")
            .bind(before.unwrap_or(i64::MAX))
            .bind(i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX))
            .fetch(&store.read);
    let (mut found, mut bytes) = (Vec::<ParkedRow>::new(), 0);
    while let Some(row) = rows.try_next().await? {
        if found.len() >= limit || bytes >= PAGE_PAYLOAD_BYTES {
            let cut = found.last().map(|last| last.id);
            return Ok(Part { rows: found, cut });
        }
        bytes += row.try_get::<&[u8], _>("bytes")?.len();
        found.push(decode(&store.sealer, &row)?);
    }
    Ok(Part::whole(found))
}

fn decode(sealer: &Sealer, row: &PgRow) -> Work<ParkedRow> {
    let opened = sealer.open_parked(row.try_get("bytes")?);
    Ok(ParkedRow {
        id: row.try_get("id")?,
        kind: row.try_get("kind")?,
        reason: row.try_get("reason")?,
        sealed_away: opened.is_none(),
        bytes: opened.unwrap_or_default(),
        at: UnixMillis(row.try_get("at")?),
    })
}

//! Taking a whole store in: every portion in one transaction, so that a move that is cut short leaves nothing behind.
//!
//! The tables of configuration and `waiting` are locked against writers from the first moment; they must be empty,
//! and so must the log. Partitions of days are made outside of the transaction, since making one is a lock of its own:
//! they are all that an aborted import leaves.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use postrider_model::UnixMillis;
use postrider_store::fold::{AttemptPut, DeliveryPut, WaitingPut};
use postrider_store::transfer::{MovedApplication, MovedCounter, MovedEndpoint, Portion};
use postrider_store::{MessageRow, ParkedRow, StoreError, StoredKey, TaskRow, parked_digest};
use sqlx::{Postgres, Row, Transaction};

use crate::config::apps::metadata;
use crate::config::endpoints;
use crate::error::{Fail, Work};
use crate::record::write::{self, column};
use crate::record::{Way, day, messages};
use crate::row::{clean, clean_opt};
use crate::{PostgresStore, within};

/// Longest single portion, and the longest statement in it.
const PORTION_LIMIT: Duration = Duration::from_secs(600);

/// Why a store cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is something in the target.
    #[error("the target is not empty: there are rows in `{0}`; make a new database for it")]
    NotEmpty(String),
    /// Anything else.
    #[error("the target cannot be written")]
    Store(#[source] StoreError),
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A store on its way in. Dropped without [`Import::finish`], it leaves nothing behind.
pub struct Import {
    store: Arc<PostgresStore>,
    tx: Transaction<'static, Postgres>,
}

impl std::fmt::Debug for Import {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Import").finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Begins to take a whole store in. The schema must be up to date.
    ///
    /// # Errors
    /// [`ImportError::NotEmpty`], or [`ImportError::Store`] when Postgres does not answer.
    pub async fn import(self: &Arc<Self>) -> Result<Import, ImportError> {
        let (tx, full) = within(PORTION_LIMIT, begin(self)).await?;
        match full {
            Some(table) => Err(ImportError::NotEmpty(table)),
            None => Ok(Import {
                store: self.clone(),
                tx,
            }),
        }
    }
}

async fn begin(store: &PostgresStore) -> Work<(Transaction<'static, Postgres>, Option<String>)> {
    let mut tx = store.write.begin().await?;
    sqlx::raw_sql(
        "SET LOCAL statement_timeout = 600000; SET LOCAL idle_in_transaction_session_timeout = 0; \
         LOCK TABLE applications, endpoints, event_types, api_keys, waiting, tasks, parked \
         IN SHARE ROW EXCLUSIVE MODE",
    )
    .execute(&mut *tx)
    .await?;
    let row = sqlx::query(
        "SELECT CASE WHEN EXISTS (SELECT FROM applications) THEN 'applications' \
         WHEN EXISTS (SELECT FROM endpoints) THEN 'endpoints' \
         WHEN EXISTS (SELECT FROM event_types) THEN 'event_types' \
         WHEN EXISTS (SELECT FROM api_keys) THEN 'api_keys' \
         WHEN EXISTS (SELECT FROM messages) THEN 'messages' \
         WHEN EXISTS (SELECT FROM deliveries) THEN 'deliveries' \
         WHEN EXISTS (SELECT FROM attempts) THEN 'attempts' \
         WHEN EXISTS (SELECT FROM waiting) THEN 'waiting' \
         WHEN EXISTS (SELECT FROM tasks) THEN 'tasks' \
         WHEN EXISTS (SELECT FROM parked) THEN 'parked' END AS full",
    )
    .fetch_one(&mut *tx)
    .await?;
    let full = row.try_get("full")?;
    Ok((tx, full))
}

impl Import {
    /// Takes one portion. Portions come in the order in which an export gives them.
    ///
    /// # Errors
    /// [`ImportError::Store`]: the import is lost and must begin again.
    pub async fn put(&mut self, portion: Portion) -> Result<(), ImportError> {
        Ok(within(PORTION_LIMIT, self.put_rows(portion)).await?)
    }

    /// Wakes what waits, and commits.
    ///
    /// # Errors
    /// [`ImportError::Store`]: nothing was taken in, unless the connection broke at the very commit; the target tells,
    /// by being empty or not.
    pub async fn finish(self) -> Result<(), ImportError> {
        Ok(within(PORTION_LIMIT, wake(self.tx)).await?)
    }

    async fn put_rows(&mut self, portion: Portion) -> Work<()> {
        match portion {
            Portion::Applications(rows) => self.applications(&rows).await,
            Portion::Endpoints(rows) => self.endpoints(&rows).await,
            Portion::EventTypes(rows) => self.event_types(&rows).await,
            Portion::Keys(rows) => self.keys(&rows).await,
            Portion::Sequence(last) => write::sequence(&mut self.tx, last).await,
            Portion::Messages(rows) => self.messages(rows).await,
            Portion::Deliveries(rows) => self.deliveries(&rows).await,
            Portion::Attempts(rows) => self.attempts(&rows).await,
            Portion::Waiting(rows) => self.waiting(&rows).await,
            Portion::Counters(rows) => self.counters(&rows).await,
            Portion::Claims(rows) => {
                // Expired ones lose nothing by being kept a while.
                write::claims(&mut self.tx, &rows, UnixMillis(0)).await
            }
            Portion::Tasks(rows) => self.tasks(&rows).await,
            Portion::Parked(rows) => self.parked(&rows).await,
        }
    }

    async fn applications(&mut self, rows: &[MovedApplication]) -> Work<()> {
        for row in rows {
            let app = &row.application;
            sqlx::query(
                "INSERT INTO applications (id, uid, name, throttle_rate, metadata, version, created_at, updated_at, \
                 deleted_at, propagate_traceparent) VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7, $8, $9, $10)",
            )
            .bind(app.id.as_uuid())
            .bind(clean_opt(app.uid.as_ref()))
            .bind(clean(&app.name))
            .bind(app.throttle_rate.map(i64::from))
            .bind(metadata(&app.metadata))
            .bind(i64::try_from(row.version).unwrap_or(i64::MAX))
            .bind(app.created_at.0)
            .bind(app.updated_at.0)
            .bind(row.deleted_at.map(|at| at.0))
            .bind(app.propagate_traceparent)
            .execute(&mut *self.tx)
            .await?;
        }
        Ok(())
    }

    async fn endpoints(&mut self, rows: &[MovedEndpoint]) -> Work<()> {
        for row in rows {
            let insert = sqlx::query(
                "INSERT INTO endpoints (id, app, uid, url, description, event_types, channels, disabled, paused, \
                 throttle_rate, ordered, pause_when_exhausted, svix_header_names, timeout_ms, retry_schedule_ms, \
                 headers, secrets, metadata, updated_at, memory_bytes, created_at, deleted_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18::jsonb, \
                 $19, $20, $21, $22)",
            );
            endpoints::bind_fields(&self.store, insert, &row.endpoint)
                .bind(row.endpoint.created_at.0)
                .bind(row.deleted_at.map(|at| at.0))
                .execute(&mut *self.tx)
                .await?;
            if let Some(since) = row.failing_since {
                sqlx::query("INSERT INTO endpoint_health (endpoint, failing_since) VALUES ($1, $2)")
                    .bind(row.endpoint.id.as_uuid())
                    .bind(since.0)
                    .execute(&mut *self.tx)
                    .await?;
            }
        }
        Ok(())
    }

    async fn event_types(&mut self, rows: &[postrider_model::EventType]) -> Work<()> {
        for row in rows {
            sqlx::query(
                "INSERT INTO event_types (id, name, description, archived, deprecated, feature_flag, schemas, \
                 created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            )
            .bind(row.id.as_uuid())
            .bind(clean(&row.name))
            .bind(clean(&row.description))
            .bind(row.archived)
            .bind(row.deprecated)
            .bind(clean_opt(row.feature_flag.as_ref()))
            .bind(clean_opt(row.schemas.as_ref()))
            .bind(row.created_at.0)
            .bind(row.updated_at.0)
            .execute(&mut *self.tx)
            .await?;
        }
        Ok(())
    }

    async fn keys(&mut self, rows: &[StoredKey]) -> Work<()> {
        for row in rows {
            sqlx::query(
                "INSERT INTO api_keys (id, hash, scope, name, created_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(row.key.id.as_uuid())
            .bind(row.key.hash.as_slice())
            .bind(clean(&row.key.scope))
            .bind(clean(&row.key.name))
            .bind(row.key.created_at.0)
            .bind(row.revoked_at.map(|at| at.0))
            .execute(&mut *self.tx)
            .await?;
        }
        Ok(())
    }

    async fn messages(&mut self, rows: Vec<MessageRow>) -> Work<()> {
        self.days(rows.iter().map(|row| row.message.id.created_at()))
            .await?;
        let sealer = &self.store.sealer;
        let sealed: HashMap<_, _> = rows
            .iter()
            .filter(|row| !row.payload_gone)
            .map(|row| {
                (
                    row.message.id,
                    sealer.payload(row.message.id, &row.message.payload),
                )
            })
            .collect();
        let rows: Vec<_> = rows.into_iter().map(|row| Arc::new(row.message)).collect();
        messages::write(&mut self.tx, &rows, &sealed, Way::Careful).await?;
        Ok(())
    }

    async fn deliveries(&mut self, rows: &[DeliveryPut]) -> Work<()> {
        self.days(rows.iter().map(|row| row.id.created_at())).await?;
        let mut rows: Vec<&DeliveryPut> = rows.iter().collect();
        write::insert_deliveries(&mut self.tx, &mut rows, Way::Careful).await
    }

    async fn attempts(&mut self, rows: &[AttemptPut]) -> Work<()> {
        self.days(rows.iter().map(|row| row.attempt.id.created_at()))
            .await?;
        write::attempts(&mut self.tx, rows, Way::Careful).await?;
        Ok(())
    }

    async fn waiting(&mut self, rows: &[WaitingPut]) -> Work<()> {
        let rows: Vec<&WaitingPut> = rows.iter().collect();
        write::put_waiting(&mut self.tx, &rows).await
    }

    async fn counters(&mut self, rows: &[MovedCounter]) -> Work<()> {
        let rows = rows.iter().map(|row| ((row.endpoint, row.hour), row.counts));
        write::counters(&mut self.tx, &rows.collect()).await
    }

    async fn tasks(&mut self, rows: &[TaskRow]) -> Work<()> {
        for row in rows {
            sqlx::query(
                "INSERT INTO tasks (id, kind, app, endpoint, since, until, cursor, state, updated_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            )
            .bind(row.id.as_uuid())
            .bind(i16::from(row.kind as u8))
            .bind(row.app.as_uuid())
            .bind(row.endpoint.as_uuid())
            .bind(row.since.0)
            .bind(row.until.0)
            .bind(row.cursor.map(|cursor| cursor.as_uuid()))
            .bind(i16::from(row.state as u8))
            .bind(row.updated_at.0)
            .execute(&mut *self.tx)
            .await?;
        }
        Ok(())
    }

    async fn parked(&mut self, rows: &[ParkedRow]) -> Work<()> {
        let sealed: Vec<Vec<u8>> = rows
            .iter()
            .map(|row| self.store.sealer.parked(&row.bytes))
            .collect();
        sqlx::query(
            "INSERT INTO parked (kind, reason, bytes, at, digest) \
             SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bigint[], $5::bytea[]) \
             ON CONFLICT DO NOTHING",
        )
        .bind(column(rows, |row| clean(&row.kind)))
        .bind(column(rows, |row| clean(&row.reason)))
        .bind(sealed)
        .bind(column(rows, |row| row.at.0))
        .bind(column(rows, |row| parked_digest(&row.kind, &row.bytes).to_vec()))
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Makes the partitions of these rows' days.
    async fn days(&self, times: impl Iterator<Item = UnixMillis>) -> Work<()> {
        let days: HashSet<i64> = times.map(day).collect();
        self.store.ensure_days(days).await
    }
}

/// Lets the scheduler find every endpoint for which something waits; it passes over held ones itself.
async fn wake(mut tx: Transaction<'static, Postgres>) -> Result<(), Fail> {
    sqlx::query(
        "INSERT INTO backlog (endpoint, app, next_due) \
         SELECT endpoint, (array_agg(app))[1], min(due_at) FROM waiting GROUP BY endpoint",
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}

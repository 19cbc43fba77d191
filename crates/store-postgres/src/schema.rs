//! The schema: forward-only migrations, and a partition of each log table for each day.
//!
//! A day's partitions are made beforehand by `migrate` and `retain` (yesterday to the day after tomorrow), and on
//! demand when a record of another day comes. There is no default partition: it would have to be searched each time
//! that a day is added. Making one locks its table against other schema changes only.

mod days;
mod locks;

use std::collections::HashSet;
use std::time::Duration;

use postrider_model::UnixMillis;
use postrider_store::StoreError;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

pub(crate) use self::days::{DAY_MS, Days, partition};
use crate::error::{Fail, Work, code};
use crate::{KEEP_ALIVE, PostgresStore, within};

/// Each migration, from version 1 on. Only ever append.
const MIGRATIONS: [&str; VERSION as usize] = [
    include_str!("../migrations/0001_initial.sql"),
    include_str!("../migrations/0002_suspects.sql"),
    include_str!("../migrations/0003_upkeep.sql"),
    include_str!("../migrations/0004_traceparent.sql"),
    include_str!("../migrations/0005_attempts_key.sql"),
    include_str!("../migrations/0006_changed.sql"),
    include_str!("../migrations/0007_counters_bucket.sql"),
    include_str!("../migrations/0008_not_before.sql"),
    include_str!("../migrations/0009_deleted.sql"),
    include_str!("../migrations/0010_endpoint_bytes.sql"),
];

/// The version that this program needs.
pub(crate) const VERSION: u32 = 10;

/// Longest migration.
const MIGRATE_LIMIT: Duration = Duration::from_secs(600);

/// How long a migration stands in a table's queue, in which everybody who comes later stands behind it, how long it lets
/// them pass before it tries again, and how often it tries: some seven minutes.
const LOCK_WAIT_MS: u32 = 2_000;
const LOCK_REST: Duration = Duration::from_secs(2);
const LOCK_TRIES: u32 = 100;

/// Names of this program's advisory locks: schema changes, retention. [`days`] has that of partitions.
const MIGRATE_LOCK: i64 = 0x706f_7374_7269_0001;
pub(crate) const RETAIN_LOCK: i64 = 0x706f_7374_7269_0003;

/// Days before and after the store's today whose records are taken: a wrong clock must not make tables without end.
const DAYS_BACK: i64 = 3_650;
const DAYS_AHEAD: i64 = 30;

/// A migration did not get a table in all its tries.
#[derive(Debug, thiserror::Error)]
#[error(
    "a table that the migration changes stays locked: end the transaction that has it (pg_stat_activity shows it), and migrate again"
)]
struct Locked(#[source] sqlx::Error);

impl PostgresStore {
    pub(crate) async fn migrate_schema(&self) -> Result<(u32, u32), StoreError> {
        within(MIGRATE_LIMIT, async {
            let mut connection = PgConnection::connect_with(&self.options).await?;
            // Held by the session: it ends with the connection, however this ends.
            sqlx::query("SELECT pg_advisory_lock($1)")
                .bind(MIGRATE_LOCK)
                .execute(&mut connection)
                .await?;
            let found = version(&mut connection).await?;
            // Migrations only add, so a newer schema serves this program too: it may have to go back to this version.
            if found > VERSION {
                return Ok((found, found));
            }
            sqlx::raw_sql(AssertSqlSafe(format!(
                "SET lock_timeout = {LOCK_WAIT_MS}; {KEEP_ALIVE}"
            )))
            .execute(&mut connection)
            .await?;
            for (index, statements) in MIGRATIONS.into_iter().enumerate().skip(to_index(found)) {
                let mut tries = 1;
                while let Err(error) = step(&mut connection, index + 1, statements).await {
                    // LOCK NOT AVAILABLE: a long read has the table.
                    if code(&error).as_deref() != Some("55P03") {
                        return Err(error.into());
                    }
                    if tries == LOCK_TRIES {
                        return Err(Fail::Store(StoreError::Unavailable(Box::new(Locked(error)))));
                    }
                    tries += 1;
                    tokio::time::sleep(LOCK_REST).await;
                }
            }
            connection.close().await?;
            self.prepare_days().await?;
            self.look_at_locks().await?;
            Ok((found, VERSION))
        })
        .await
    }

    pub(crate) async fn verify_schema(&self) -> Work<()> {
        let mut connection = self.read.acquire().await?;
        let found = version(&mut connection).await?;
        // Migrations only add: a newer schema serves this program too, so that old and new run side by side.
        if found >= VERSION {
            drop(connection);
            return self.look_at_locks().await;
        }
        Err(Fail::Store(StoreError::Schema {
            found,
            wanted: VERSION,
        }))
    }

    /// Makes the partitions of yesterday to the day after tomorrow.
    pub(crate) async fn prepare_days(&self) -> Work<()> {
        let today = self.clock().await?.0.div_euclid(DAY_MS);
        self.days
            .make(&self.write, (today - 1..=today + 2).collect())
            .await
    }

    /// Makes the partitions of the days of a batch.
    pub(crate) async fn ensure_days(&self, days: HashSet<i64>) -> Work<()> {
        let missing = self.days.unknown(days);
        if missing.is_empty() {
            return Ok(());
        }
        let today = self.clock().await?.0.div_euclid(DAY_MS);
        if let Some(day) = missing
            .iter()
            .find(|day| !(today - DAYS_BACK..=today + DAYS_AHEAD).contains(day))
        {
            return Err(Fail::Store(StoreError::Rejected(Box::new(FarDay(*day - today)))));
        }
        self.days.make(&self.write, missing).await
    }

    /// Refuses rows of days of which a partition is on its way out: while that takes (a long read keeps it) there is no
    /// place for them, and the name is taken.
    pub(crate) async fn refuse_leaving(&self, days: &HashSet<i64>) -> Work<()> {
        match days::leaving(&self.write, days).await? {
            Some(name) => Err(Fail::Store(StoreError::Rejected(Box::new(Leaving(name))))),
            None => Ok(()),
        }
    }

    pub(crate) async fn clock(&self) -> Work<UnixMillis> {
        let now: i64 = sqlx::query_scalar("SELECT now_ms()")
            .fetch_one(&self.write)
            .await?;
        Ok(UnixMillis(now))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the id of a record is {0} days away from the store's clock")]
struct FarDay(i64);

#[derive(Debug, thiserror::Error)]
#[error(
    "retention has begun to remove {0}, and an open transaction keeps it (pg_stat_activity shows which): a row of that day \
     has no place until then"
)]
struct Leaving(String);

fn to_index(version: u32) -> usize {
    usize::try_from(version).unwrap_or(usize::MAX)
}

/// The schema's version; 0 for an empty database.
async fn version(connection: &mut PgConnection) -> Work<u32> {
    let found = sqlx::query_scalar::<_, Option<i32>>("SELECT max(version) FROM schema_version")
        .fetch_one(connection)
        .await;
    match found {
        Ok(version) => Ok(version
            .and_then(|version| u32::try_from(version).ok())
            .unwrap_or(0)),
        Err(error) if code(&error).as_deref() == Some("42P01") => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// One migration, which makes the schema this version.
async fn step(connection: &mut PgConnection, version: usize, statements: &'static str) -> sqlx::Result<()> {
    let mut tx = connection.begin().await?;
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY, applied_at \
         timestamptz NOT NULL DEFAULT now())",
    )
    .execute(&mut *tx)
    .await?;
    sqlx::raw_sql(statements).execute(&mut *tx).await?;
    sqlx::query("INSERT INTO schema_version (version) VALUES ($1)")
        .bind(i32::try_from(version).unwrap_or(i32::MAX))
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

//! The schema: forward-only migrations, and a partition of each log table for each day.
//!
//! A day's partitions are made beforehand by `migrate` and `retain` (yesterday to the day after tomorrow), and on
//! demand when a record of another day comes. There is no default partition: it would have to be searched each time
//! that a day is added. Making one locks its table against other schema changes only.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use postrider_model::UnixMillis;
use postrider_store::StoreError;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::error::{Fail, Work, code};
use crate::row::floor;
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
];

/// The version that this program needs.
pub(crate) const VERSION: u32 = 9;

/// Longest migration.
const MIGRATE_LIMIT: Duration = Duration::from_secs(600);

/// How long a migration stands in a table's queue, in which everybody who comes later stands behind it, how long it lets
/// them pass before it tries again, and how often it tries: some seven minutes.
const LOCK_WAIT_MS: u32 = 2_000;
const LOCK_REST: Duration = Duration::from_secs(2);
const LOCK_TRIES: u32 = 100;

/// Names of this program's advisory locks: schema changes, partitions, retention.
const MIGRATE_LOCK: i64 = 0x706f_7374_7269_0001;
const PARTITION_LOCK: i64 = 0x706f_7374_7269_0002;
pub(crate) const RETAIN_LOCK: i64 = 0x706f_7374_7269_0003;

/// Milliseconds of a day.
pub(crate) const DAY_MS: i64 = 86_400_000;

/// Days before and after the store's today whose records are taken: a wrong clock must not make tables without end.
const DAYS_BACK: i64 = 3_650;
const DAYS_AHEAD: i64 = 30;

/// The log's tables with what their partitions are made with. Deliveries are updated, so their pages have room.
pub(crate) const LOG_TABLES: [(&str, &str); 4] = [
    ("messages", ""),
    ("bodies", ""),
    ("deliveries", " WITH (fillfactor = 50)"),
    ("attempts", ""),
];

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
            Ok((found, VERSION))
        })
        .await
    }

    pub(crate) async fn verify_schema(&self) -> Work<()> {
        let mut connection = self.read.acquire().await?;
        let found = version(&mut connection).await?;
        // Migrations only add: a newer schema serves this program too, so that old and new run side by side.
        if found >= VERSION {
            return Ok(());
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

/// The days that are known to have partitions.
#[derive(Debug, Default)]
pub(crate) struct Days(Mutex<HashSet<i64>>);

impl Days {
    fn unknown(&self, days: HashSet<i64>) -> Vec<i64> {
        let known = self.0.lock();
        let mut missing: Vec<i64> = days.into_iter().filter(|day| !known.contains(day)).collect();
        missing.sort_unstable();
        missing
    }

    /// Forgets what is known: retention somewhere dropped a partition.
    pub(crate) fn forget(&self) {
        self.0.lock().clear();
    }

    async fn make(&self, pool: &PgPool, days: Vec<i64>) -> Work<()> {
        for day in days {
            let mut tx = pool.begin().await?;
            sqlx::query("SELECT pg_advisory_xact_lock($1)")
                .bind(PARTITION_LOCK)
                .execute(&mut *tx)
                .await?;
            for (table, with) in LOG_TABLES {
                make_partition(&mut tx, table, with, day).await?;
            }
            tx.commit().await?;
            let mut known = self.0.lock();
            // One entry a day for years: the bound is there for clocks that run wild.
            if known.len() > 10_000 {
                known.clear();
            }
            known.insert(day);
        }
        Ok(())
    }
}

/// The partition of a table and a day: `deliveries_20261121`.
pub(crate) fn partition(table: &str, day: i64) -> String {
    let (year, month, day) = civil(day);
    format!("{table}_{year:04}{month:02}{day:02}")
}

/// The date of a day since 1970-01-01, in the Gregorian calendar. Years begin in March here, so that the leap day ends
/// one; 400 of them have 146,097 days.
fn civil(day: i64) -> (i64, i64, i64) {
    let from_march_of_0 = day + 719_468;
    let era = from_march_of_0.div_euclid(146_097);
    let of_era = from_march_of_0.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + next, month, of_month)
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

async fn make_partition(connection: &mut PgConnection, table: &str, with: &str, day: i64) -> Work<()> {
    let name = partition(table, day);
    let made: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(&name)
        .fetch_one(&mut *connection)
        .await?;
    // One that retention took off and has not dropped yet is in nobody's way: whatever has a row for it is told so by
    // Postgres.
    if made {
        return Ok(());
    }
    let (low, high) = (
        floor(UnixMillis(day * DAY_MS)),
        floor(UnixMillis((day + 1) * DAY_MS)),
    );
    // Made apart and attached: `CREATE TABLE … PARTITION OF` would lock readers and writers out.
    let statements = format!(
        "CREATE TABLE {name} (LIKE {table} INCLUDING ALL){with}; \
         ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{low}') TO ('{high}')"
    );
    sqlx::raw_sql(AssertSqlSafe(statements))
        .execute(connection)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_the_name_of_its_date() {
        for (day, name) in [
            (0, "m_19700101"),
            (58, "m_19700228"),
            (59, "m_19700301"),
            (11_016, "m_20000229"),
            (11_017, "m_20000301"),
            (20_778, "m_20261121"),
            (20_818, "m_20261231"),
            (20_819, "m_20270101"),
            (47_540, "m_21000228"),
            (47_541, "m_21000301"),
        ] {
            assert_eq!(partition("m", day), name);
        }
    }
}

//! The partitions of the log's tables, one for each day.

use std::collections::HashSet;

use parking_lot::Mutex;
use postrider_model::UnixMillis;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use crate::error::Work;
use crate::row::floor;

/// Name of the advisory lock of whoever makes partitions.
const PARTITION_LOCK: i64 = 0x706f_7374_7269_0002;

/// Milliseconds of a day.
pub(crate) const DAY_MS: i64 = 86_400_000;

/// The log's tables with what their partitions are made with. Deliveries are updated, so their pages have room.
const LOG_TABLES: [(&str, &str); 4] = [
    ("messages", ""),
    ("bodies", ""),
    ("deliveries", " WITH (fillfactor = 50)"),
    ("attempts", ""),
];

/// The days that are known to have partitions.
#[derive(Debug, Default)]
pub(crate) struct Days(Mutex<HashSet<i64>>);

impl Days {
    pub(super) fn unknown(&self, days: HashSet<i64>) -> Vec<i64> {
        let known = self.0.lock();
        let mut missing: Vec<i64> = days.into_iter().filter(|day| !known.contains(day)).collect();
        missing.sort_unstable();
        missing
    }

    /// Forgets what is known: retention somewhere dropped a partition.
    pub(crate) fn forget(&self) {
        self.0.lock().clear();
    }

    /// Makes the partitions of these days.
    pub(super) async fn make(&self, pool: &PgPool, days: Vec<i64>) -> Work<()> {
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

/// A partition of one of these days that retention has taken off, or is at it, and that is still there.
pub(super) async fn leaving(pool: &PgPool, days: &HashSet<i64>) -> Work<Option<String>> {
    let names: Vec<String> = days
        .iter()
        .flat_map(|day| LOG_TABLES.map(|(table, _)| partition(table, *day)))
        .collect();
    let leaving = sqlx::query_scalar(
        "SELECT c.relname::text FROM unnest($1::text[]) n JOIN pg_class c ON c.oid = to_regclass(n) \
         LEFT JOIN pg_inherits i ON i.inhrelid = c.oid WHERE i.inhrelid IS NULL OR i.inhdetachpending \
         ORDER BY c.relname LIMIT 1",
    )
    .bind(names)
    .fetch_optional(pool)
    .await?;
    Ok(leaving)
}

async fn make_partition(connection: &mut PgConnection, table: &str, with: &str, day: i64) -> Work<()> {
    let name = partition(table, day);
    let made: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(&name)
        .fetch_one(&mut *connection)
        .await?;
    // One that retention has not dropped yet is in nobody's way: whatever has a row for it is refused, see [`leaving`].
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

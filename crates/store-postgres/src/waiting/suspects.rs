//! Rows that were leased at several deaths of the process go one at a time. They are rare, so leasing takes them like any
//! other; what is too many of them is put back in the same transaction.

use std::collections::{HashMap, HashSet};

use postrider_model::UnixMillis;
use postrider_store::{Grant, PARK_DEATHS, SUSPECT_DEATHS};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::error::Work;
use crate::row::to_u32;

/// A suspect whose turn it is not is looked at again after so many milliseconds.
const TURN_PAUSE_MS: i64 = 500;

pub(super) fn deaths(row: &PgRow) -> Work<u32> {
    to_u32(i64::from(row.try_get::<i32, _>("deaths")?))
}

fn is_suspect(row: &PgRow) -> Work<bool> {
    Ok((SUSPECT_DEATHS..PARK_DEATHS).contains(&deaths(row)?))
}

/// Puts back suspects of the leased `rows` whose turn it is not, and what of their sequence is with them; returns what
/// was put back.
pub(super) async fn hold_back(
    connection: &mut PgConnection,
    grants: &[Grant],
    rows: &[PgRow],
    now: UnixMillis,
) -> Work<HashSet<Uuid>> {
    let mut suspects = Vec::with_capacity(rows.len());
    for row in rows {
        suspects.push(is_suspect(row)?);
    }
    if !suspects.contains(&true) {
        return Ok(HashSet::new());
    }
    let taken = rows
        .iter()
        .map(|row| row.try_get("delivery"))
        .collect::<Result<Vec<Uuid>, _>>()?;
    let mut is_on = trial_is_on(connection, &taken, now).await?;
    let ordered: HashSet<Uuid> = grants
        .iter()
        .filter(|grant| grant.ordered)
        .map(|grant| grant.endpoint.as_uuid())
        .collect();
    // Of a sequence: whether anything went, and whether it ended.
    let mut runs: HashMap<Uuid, (bool, bool)> = HashMap::new();
    let (mut later, mut behind) = (Vec::new(), Vec::new());
    for ((row, suspect), delivery) in rows.iter().zip(suspects).zip(taken) {
        let endpoint: Uuid = row.try_get("endpoint")?;
        let run = ordered
            .contains(&endpoint)
            .then(|| runs.entry(endpoint).or_default());
        match run {
            Some((_, true)) => behind.push(delivery),
            Some((true, ended)) if suspect => {
                *ended = true;
                behind.push(delivery);
            }
            Some((_, ended)) if suspect && is_on => {
                *ended = true;
                later.push(delivery);
            }
            Some((went, ended)) => {
                *went = true;
                *ended = suspect;
                is_on |= suspect;
            }
            None if suspect && is_on => later.push(delivery),
            None => is_on |= suspect,
        }
    }
    put_back(connection, &later, now.0 + TURN_PAUSE_MS).await?;
    put_back(connection, &behind, now.0).await?;
    Ok(later.into_iter().chain(behind).collect())
}

/// Whether a suspect other than these is out.
async fn trial_is_on(connection: &mut PgConnection, except: &[Uuid], now: UnixMillis) -> Work<bool> {
    let is_on = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM waiting WHERE deaths >= 3 AND leased AND due_at > $1 AND deaths < $2 \
         AND delivery <> ALL($3))",
    )
    .bind(now.0)
    .bind(i32::try_from(PARK_DEATHS).unwrap_or(i32::MAX))
    .bind(except)
    .fetch_one(connection)
    .await?;
    Ok(is_on)
}

async fn put_back(connection: &mut PgConnection, deliveries: &[Uuid], due_at: i64) -> Work<()> {
    if deliveries.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE waiting SET leased = false, due_at = $2, lease_count = greatest(lease_count - 1, 0) \
         WHERE delivery = ANY($1)",
    )
    .bind(deliveries)
    .bind(due_at)
    .execute(connection)
    .await?;
    Ok(())
}

//! The rows of a batch, each table written once.

use std::collections::{BTreeMap, HashMap, HashSet};

use postrider_model::{Claim, EndpointId, UnixMillis};
use postrider_store::fold::{AttemptPut, Changes, DeliveryPut, Known, StateCounts, WaitingPut};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::load::by_day;
use super::{Way, insert};
use crate::error::{Fail, Work};
use crate::row::{clean, millis};
use crate::schema::partition;

/// Writes deliveries; starts again when one does not stand as it was read.
pub(super) async fn deliveries(
    connection: &mut PgConnection,
    changes: &Changes,
    known: &Known,
    way: Way,
) -> Work<()> {
    let (mut new, mut moved) = (Vec::new(), Vec::new());
    for put in changes.deliveries.values() {
        match known.deliveries.get(&put.id) {
            None => new.push(put),
            // A row that only comes to wait is written too, so that it meets a recorder that ends it.
            Some(before)
                if before.state != put.state
                    || before.attempts != put.attempts
                    || changes.waiting.contains_key(&put.id) =>
            {
                moved.push(put);
            }
            Some(_) => {}
        }
    }
    insert_deliveries(connection, &mut new, way).await?;
    update_deliveries(connection, &moved, known).await
}

/// Inserts deliveries that are new, in id order; starts again when one is there already.
pub(crate) async fn insert_deliveries(
    connection: &mut PgConnection,
    new: &mut [&DeliveryPut],
    way: Way,
) -> Work<()> {
    if new.is_empty() {
        return Ok(());
    }
    new.sort_unstable_by_key(|put| put.id);
    let done = sqlx::query(way.of(insert!(
        "INSERT INTO deliveries (id, message, endpoint, app, attempts, state, trigger, cancelled) \
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bigint[], $6::smallint[], \
         $7::smallint[], $8::smallint[])"
    )))
    .bind(column(new, |put| put.id.as_uuid()))
    .bind(column(new, |put| put.message.as_uuid()))
    .bind(column(new, |put| put.endpoint.as_uuid()))
    .bind(column(new, |put| put.app.as_uuid()))
    .bind(column(new, |put| i64::from(put.attempts)))
    .bind(column(new, |put| i16::from(put.state as u8)))
    .bind(column(new, |put| i16::from(put.trigger as u8)))
    .bind(column(new, |put| {
        put.cancelled.map(|reason| i16::from(reason as u8))
    }))
    .execute(connection)
    .await
    .map_err(|error| way.failed(error))?;
    all_done(done.rows_affected(), new.len())
}

async fn update_deliveries(connection: &mut PgConnection, moved: &[&DeliveryPut], known: &Known) -> Work<()> {
    let by_id: HashMap<Uuid, &DeliveryPut> = moved.iter().map(|put| (put.id.as_uuid(), *put)).collect();
    let mut ids: Vec<Uuid> = by_id.keys().copied().collect();
    ids.sort_unstable();
    for (day, ids) in by_day(&ids) {
        let puts: Vec<(&DeliveryPut, i16, i64)> = ids
            .iter()
            .filter_map(|id| {
                let put = *by_id.get(id)?;
                let before = known.deliveries.get(&put.id)?;
                Some((put, i16::from(before.state as u8), i64::from(before.attempts)))
            })
            .collect();
        let statement = format!(
            // A cancelled delivery keeps its reason: the fold does not know it.
            "UPDATE {} d SET state = u.state, attempts = u.attempts, \
             cancelled = CASE WHEN d.state = u.state THEN d.cancelled ELSE u.cancelled END \
             FROM unnest($1::uuid[], $2::smallint[], $3::bigint[], $4::smallint[], $5::smallint[], $6::bigint[]) \
             AS u(id, state, attempts, cancelled, old_state, old_attempts) \
             WHERE d.id = u.id AND d.state = u.old_state \
             AND d.attempts = u.old_attempts AND (d.state IN (1, 3) OR d.state = u.state)",
            partition("deliveries", day)
        );
        let done = sqlx::query(AssertSqlSafe(statement))
            .bind(column(&puts, |(put, ..)| put.id.as_uuid()))
            .bind(column(&puts, |(put, ..)| i16::from(put.state as u8)))
            .bind(column(&puts, |(put, ..)| i64::from(put.attempts)))
            .bind(column(&puts, |(put, ..)| {
                put.cancelled.map(|reason| i16::from(reason as u8))
            }))
            .bind(column(&puts, |put| put.1))
            .bind(column(&puts, |put| put.2))
            .execute(&mut *connection)
            .await?;
        all_done(done.rows_affected(), puts.len())?;
    }
    Ok(())
}

/// Inserts attempts that are new; returns how many.
pub(crate) async fn attempts(connection: &mut PgConnection, puts: &[AttemptPut], way: Way) -> Work<usize> {
    let mut seen = HashSet::with_capacity(puts.len());
    let puts: Vec<&AttemptPut> = puts.iter().filter(|put| seen.insert(put.attempt.id)).collect();
    let puts = puts.as_slice();
    if puts.is_empty() {
        return Ok(0);
    }
    let done = sqlx::query(way.of(insert!(
        "INSERT INTO attempts (id, delivery, message, endpoint, app, started_at, duration_ms, status, class, trigger, \
         response, url) SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], \
         $6::bigint[], $7::bigint[], $8::integer[], $9::smallint[], $10::smallint[], $11::bytea[], $12::text[])"
    )))
    .bind(column(puts, |put| put.attempt.id.as_uuid()))
    .bind(column(puts, |put| put.delivery.as_uuid()))
    .bind(column(puts, |put| put.message.as_uuid()))
    .bind(column(puts, |put| put.endpoint.as_uuid()))
    .bind(column(puts, |put| put.app.as_uuid()))
    .bind(column(puts, |put| put.attempt.started_at.0))
    .bind(column(puts, |put| millis(put.attempt.duration)))
    .bind(column(puts, |put| i32::from(put.attempt.status)))
    .bind(column(puts, |put| i16::from(put.attempt.class as u8)))
    .bind(column(puts, |put| i16::from(put.trigger as u8)))
    .bind(column(puts, |put| put.attempt.response.as_ref()))
    .bind(column(puts, |put| clean(&put.attempt.url)))
    .execute(connection)
    .await
    .map_err(|error| way.failed(error))?;
    Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
}

/// Writes and removes waiting rows.
pub(super) async fn waiting(connection: &mut PgConnection, changes: &Changes, known: &Known) -> Work<()> {
    let mut puts: Vec<&WaitingPut> = changes.waiting.values().flatten().collect();
    puts.sort_unstable_by_key(|put| put.delivery);
    if !puts.is_empty() {
        put_waiting(connection, &puts).await?;
    }
    let gone: Vec<Uuid> = changes
        .waiting
        .iter()
        .filter(|(id, put)| {
            let waits = known
                .deliveries
                .get(id)
                .is_some_and(|known| known.waiting.is_some());
            put.is_none() && waits
        })
        .map(|(id, _)| id.as_uuid())
        .collect();
    if !gone.is_empty() {
        sqlx::query("DELETE FROM waiting WHERE delivery = ANY($1)")
            .bind(gone)
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// Writes waiting rows, in id order; starts again when one was handed out meanwhile. What the recorder writes is no
/// expired lease, so their count starts again.
pub(crate) async fn put_waiting(connection: &mut PgConnection, puts: &[&WaitingPut]) -> Work<()> {
    let done = sqlx::query(
        "INSERT INTO waiting (delivery, endpoint, app, message, due_at, leased_at, seq, run, attempts, reason, \
         trigger, leased) SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bigint[], \
         $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::smallint[], $11::smallint[], $12::boolean[]) \
         ON CONFLICT (delivery) DO UPDATE SET due_at = EXCLUDED.due_at, leased_at = EXCLUDED.leased_at, \
         seq = EXCLUDED.seq, run = EXCLUDED.run, attempts = EXCLUDED.attempts, lease_count = 0, \
         reason = EXCLUDED.reason, leased = EXCLUDED.leased, \
         deaths = CASE WHEN EXCLUDED.leased THEN waiting.deaths ELSE 0 END WHERE waiting.run <= EXCLUDED.run",
    )
    .bind(column(puts, |put| put.delivery.as_uuid()))
    .bind(column(puts, |put| put.endpoint.as_uuid()))
    .bind(column(puts, |put| put.app.as_uuid()))
    .bind(column(puts, |put| put.message.as_uuid()))
    .bind(column(puts, |put| put.due_at.0))
    .bind(column(puts, |put| put.leased_at.map(|at| at.0)))
    .bind(column(puts, |put| put.seq))
    .bind(column(puts, |put| i64::from(put.run)))
    .bind(column(puts, |put| i64::from(put.attempts)))
    .bind(column(puts, |put| i16::from(put.reason as u8)))
    .bind(column(puts, |put| i16::from(put.trigger as u8)))
    .bind(column(puts, |put| put.leased))
    .execute(connection)
    .await?;
    all_done(done.rows_affected(), puts.len())
}

/// Stores the last number given.
pub(crate) async fn sequence(connection: &mut PgConnection, last_seq: i64) -> Work<()> {
    sqlx::query("UPDATE sequence SET last_seq = $1")
        .bind(last_seq)
        .execute(connection)
        .await?;
    Ok(())
}

/// Moves counters, in the order of their keys.
pub(crate) async fn counters(
    connection: &mut PgConnection,
    counters: &HashMap<(EndpointId, i64), StateCounts>,
) -> Work<()> {
    let moves: BTreeMap<_, _> = counters
        .iter()
        .filter(|(_, counts)| **counts != StateCounts::default())
        .collect();
    if moves.is_empty() {
        return Ok(());
    }
    let moves: Vec<(&(EndpointId, i64), &StateCounts)> = moves.into_iter().collect();
    sqlx::query(
        "INSERT INTO counters (endpoint, bucket, pending, retrying, delivered, exhausted, cancelled) \
         SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], \
         $7::bigint[]) ON CONFLICT (endpoint, bucket) DO UPDATE SET \
         pending = counters.pending + EXCLUDED.pending, retrying = counters.retrying + EXCLUDED.retrying, \
         delivered = counters.delivered + EXCLUDED.delivered, exhausted = counters.exhausted + EXCLUDED.exhausted, \
         cancelled = counters.cancelled + EXCLUDED.cancelled",
    )
    .bind(column(&moves, |(key, _)| key.0.as_uuid()))
    .bind(column(&moves, |(key, _)| key.1))
    .bind(column(&moves, |(_, counts)| counts.pending))
    .bind(column(&moves, |(_, counts)| counts.retrying))
    .bind(column(&moves, |(_, counts)| counts.delivered))
    .bind(column(&moves, |(_, counts)| counts.exhausted))
    .bind(column(&moves, |(_, counts)| counts.cancelled))
    .execute(connection)
    .await?;
    Ok(())
}

/// Stores claims; one that stands keeps its promise.
pub(crate) async fn claims(connection: &mut PgConnection, claims: &[Claim], now: UnixMillis) -> Work<()> {
    let mut once: BTreeMap<[u8; 32], &Claim> = BTreeMap::new();
    for claim in claims {
        once.entry(claim.key).or_insert(claim);
    }
    if once.is_empty() {
        return Ok(());
    }
    let claims: Vec<&Claim> = once.into_values().collect();
    sqlx::query(
        "INSERT INTO claims (key, resource, fingerprint, expires_at) \
         SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bigint[]) \
         ON CONFLICT (key) DO UPDATE SET resource = EXCLUDED.resource, fingerprint = EXCLUDED.fingerprint, \
         expires_at = EXCLUDED.expires_at WHERE claims.expires_at <= $5",
    )
    .bind(column(&claims, |claim| claim.key.as_slice()))
    .bind(column(&claims, |claim| claim.resource.as_slice()))
    .bind(column(&claims, |claim| claim.fingerprint.as_slice()))
    .bind(column(&claims, |claim| claim.expires_at.0))
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// One column of rows.
pub(crate) fn column<'a, T, C>(rows: &'a [T], field: impl Fn(&'a T) -> C) -> Vec<C> {
    rows.iter().map(field).collect()
}

fn all_done(done: u64, wanted: usize) -> Work<()> {
    if usize::try_from(done).is_ok_and(|done| done == wanted) {
        Ok(())
    } else {
        Err(Fail::Again)
    }
}

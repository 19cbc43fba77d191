//! Leasing rows of claimed endpoints.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use postrider_model::{CancelReason, DeliveryId, EndpointId, Job, Message, UnixMillis};
use postrider_store::{Grant, LeasedJob, StoreError};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::look::{self, Look};
use super::suspects;
use crate::PostgresStore;
use crate::error::{Fail, Work};
use crate::log::deliveries::to_trigger;
use crate::log::messages::{self, body_join, message_columns};
use crate::record::write::column;
use crate::row::{millis, to_u32};
use crate::upkeep::cancel::{self, Doomed};

/// Bytes of bodies that one call leases, and that it leases of one endpoint: what is beyond stays due. One body always
/// goes, whatever its size. An `ordered` run is one frame, and brokers bound those.
const BYTES_MAX: i64 = 32 * 1024 * 1024;
const ENDPOINT_BYTES_MAX: i64 = 8 * 1024 * 1024;

/// Longest lease, however often earlier ones expired.
const LEASE_MAX_MS: i64 = 3_600_000;

/// How long an endpoint rests when less could be leased than was granted: what is due waits for its message.
const SHORT_REST: Duration = Duration::from_secs(1);

pub(super) async fn lease(
    store: &PostgresStore,
    grants: &[Grant],
    lease: Duration,
    lag: Duration,
) -> Work<Vec<LeasedJob>> {
    let mut tx = store.write.begin().await?;
    let endpoints = column(grants, |grant| grant.endpoint.as_uuid());
    look::lock(&mut tx, &endpoints).await?;
    let now = look::now(&mut tx).await?;
    let rows = take(&mut tx, grants, lease, now, now.minus(lag)).await?;
    let held_back = suspects::hold_back(&mut tx, grants, &rows, now).await?;
    let mut jobs = Vec::with_capacity(rows.len());
    let mut bodiless = Vec::new();
    let mut taken: HashMap<Uuid, Taken> = HashMap::new();
    let mut bytes = 0;
    let mut shared: HashMap<Uuid, Arc<Message>> = HashMap::new();
    let by_endpoint: HashMap<Uuid, &Grant> = grants
        .iter()
        .map(|grant| (grant.endpoint.as_uuid(), grant))
        .collect();
    for row in &rows {
        let endpoint: Uuid = row.try_get("endpoint")?;
        let taken = taken.entry(endpoint).or_default();
        taken.count += 1;
        if held_back.contains(&row.try_get("delivery")?) {
            continue;
        }
        let Some(sealed) = row.try_get::<Option<&[u8]>, _>("sealed")? else {
            bodiless.push(Doomed::decode(row)?);
            continue;
        };
        let size = i64::try_from(sealed.len()).unwrap_or(i64::MAX);
        taken.bytes += size;
        bytes += size;
        let Some(grant) = by_endpoint.get(&endpoint).filter(|_| !taken.is_broken) else {
            continue;
        };
        match job(store, row, grant, &mut shared) {
            Ok(job) => jobs.push(job),
            // It must not hold up everybody else's. Its lease ends, and the next look finds it again; nothing behind
            // it in a sequence overtakes it.
            Err(Fail::Store(error @ StoreError::Corrupt(_))) => {
                tracing::error!(%error, "a due delivery cannot be released");
                taken.is_broken = grant.ordered;
            }
            Err(error) => return Err(error),
        }
    }
    cancel::apply(&mut tx, &bodiless, CancelReason::PayloadExpired).await?;
    let looks = column(grants, |grant| {
        let endpoint = grant.endpoint.as_uuid();
        let taken = taken.get(&endpoint).copied().unwrap_or_default();
        // Cut off by its bytes, it goes on at its pace.
        let cut = taken.bytes >= ENDPOINT_BYTES_MAX || bytes >= BYTES_MAX;
        let short = taken.count < grant.count && !cut;
        Look {
            endpoint,
            earliest: if short { now.plus(SHORT_REST) } else { now },
            not_before: now.plus(grant.not_before),
            is_full: grant.is_full,
        }
    });
    look::set(&mut tx, &looks).await?;
    tx.commit().await?;
    Ok(jobs)
}

/// What one endpoint got.
#[derive(Clone, Copy, Default)]
struct Taken {
    count: u32,
    bytes: i64,
    /// Its sequence cannot go on.
    is_broken: bool,
}

/// Leases rows and reads their messages, in order of grant and due time (or sequence). Of an `ordered` endpoint rows outside
/// the sequence go first, each when it is due.
///
/// A row of a sequence that another transaction holds ends the run before it: nothing may overtake it. A lease has expired
/// that ended at `expired` or before.
async fn take(
    connection: &mut PgConnection,
    grants: &[Grant],
    lease: Duration,
    now: UnixMillis,
    expired: UnixMillis,
) -> Work<Vec<PgRow>> {
    let rows = sqlx::query(concat!(
        "WITH g AS MATERIALIZED (SELECT u.* FROM unnest($1::uuid[], $2::bigint[], $3::boolean[]) \
           WITH ORDINALITY AS u(endpoint, n, ordered, place) JOIN endpoints e ON e.id = u.endpoint \
           WHERE u.n > 0 AND NOT e.disabled AND NOT e.paused AND e.deleted_at IS NULL \
           AND NOT (u.ordered AND EXISTS (SELECT 1 FROM waiting l WHERE l.endpoint = u.endpoint AND l.leased AND l.due_at > $9))), \
         free AS (SELECT g.place, r.* FROM g CROSS JOIN LATERAL (SELECT w.delivery, w.message, w.seq, w.due_at FROM waiting w \
           WHERE w.endpoint = g.endpoint AND w.seq = 0 AND w.due_at <= $4 \
           AND (NOT w.leased OR w.due_at <= $9) AND EXISTS (SELECT 1 FROM messages m WHERE m.id = w.message) \
           ORDER BY w.due_at LIMIT g.n FOR UPDATE OF w SKIP LOCKED) r), \
         left_over AS (SELECT g.place, r.* FROM g CROSS JOIN LATERAL (SELECT w.delivery, w.message, w.seq, w.due_at \
           FROM waiting w WHERE NOT g.ordered AND w.endpoint = g.endpoint AND w.seq > 0 AND w.due_at <= $4 \
           AND (NOT w.leased OR w.due_at <= $9) AND EXISTS (SELECT 1 FROM messages m WHERE m.id = w.message) ORDER BY w.seq, w.due_at \
           LIMIT g.n - (SELECT count(*) FROM free f WHERE f.place = g.place) FOR UPDATE OF w SKIP LOCKED) r), \
         run AS (SELECT g.place, h.* FROM g CROSS JOIN LATERAL (SELECT w.delivery, \
           row_number() OVER (ORDER BY w.seq, w.due_at, w.delivery) AS nth, \
           bool_and(w.due_at <= $4 AND EXISTS (SELECT 1 FROM messages m WHERE m.id = w.message)) \
             OVER (ORDER BY w.seq, w.due_at, w.delivery) AS ready \
           FROM (SELECT * FROM waiting i WHERE g.ordered AND i.endpoint = g.endpoint AND i.seq > 0 \
             ORDER BY i.seq, i.due_at, i.delivery \
             LIMIT g.n - (SELECT count(*) FROM free f WHERE f.place = g.place)) w) h), \
         held AS (SELECT run.place, run.nth, w.delivery, w.message, w.seq, w.due_at FROM run JOIN waiting w \
           ON w.delivery = run.delivery WHERE run.ready AND w.due_at <= $4 FOR UPDATE OF w SKIP LOCKED), \
         found AS (SELECT place, delivery, message, seq, due_at FROM free \
           UNION ALL SELECT place, delivery, message, seq, due_at FROM left_over \
           UNION ALL SELECT place, delivery, message, seq, due_at FROM (SELECT *, \
             row_number() OVER (PARTITION BY place ORDER BY nth) AS kth FROM held) k WHERE kth = nth), \
         sized AS (SELECT f.*, b.size, sum(b.size) OVER (PARTITION BY f.place ORDER BY f.seq, f.due_at, f.delivery) \
             AS of_place, sum(b.size) OVER (ORDER BY f.place, f.seq, f.due_at, f.delivery) AS of_all FROM found f \
           CROSS JOIN LATERAL (SELECT coalesce((SELECT octet_length(sealed) FROM bodies WHERE bodies.id = f.message), \
             (SELECT octet_length(sealed) FROM bodies_kept WHERE bodies_kept.id = f.message), 0)::bigint AS size) b), \
         picked AS (SELECT place, delivery, seq, due_at FROM sized \
           WHERE of_place - size < $7 AND of_all - size < $8), \
         leased AS (UPDATE waiting w SET run = w.run + 1, leased = true, leased_at = $4, \
           due_at = $4 + least(($5 * 2 ^ least(w.lease_count, 20))::bigint, $6), \
           lease_count = least(w.lease_count + 1, 20) FROM picked WHERE w.delivery = picked.delivery \
           RETURNING w.*, picked.place, picked.due_at AS was_due_at) \
         SELECT l.delivery, l.endpoint, l.run, l.attempts, l.trigger, l.due_at, l.deaths, ",
        message_columns!(),
        " FROM leased l JOIN messages m ON m.id = l.message",
        body_join!("true"),
        " ORDER BY l.place, l.seq, l.was_due_at, l.delivery"
    ))
    .bind(column(grants, |grant| grant.endpoint.as_uuid()))
    .bind(column(grants, |grant| i64::from(grant.count)))
    .bind(column(grants, |grant| grant.ordered))
    .bind(now.0)
    .bind(millis(lease).min(LEASE_MAX_MS))
    .bind(LEASE_MAX_MS)
    .bind(ENDPOINT_BYTES_MAX)
    .bind(BYTES_MAX)
    .bind(expired.0)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

fn job(
    store: &PostgresStore,
    row: &PgRow,
    grant: &Grant,
    shared: &mut HashMap<Uuid, Arc<Message>>,
) -> Work<LeasedJob> {
    let id: Uuid = row.try_get("message")?;
    let message = match shared.get(&id) {
        Some(message) => message.clone(),
        None => {
            let message = Arc::new(messages::decode(store, row, true)?.message);
            shared.insert(id, message.clone());
            message
        }
    };
    Ok(LeasedJob {
        job: Job {
            delivery: DeliveryId::from_uuid(row.try_get("delivery")?),
            endpoint: EndpointId::from_uuid(row.try_get("endpoint")?),
            message,
            run: to_u32(row.try_get("run")?)?,
            attempts: to_u32(row.try_get("attempts")?)?,
            trigger: to_trigger(row.try_get("trigger")?),
            probe: grant.probe,
            has_token: grant.has_token,
            ordered: grant.ordered,
            lease_until: Some(UnixMillis(row.try_get("due_at")?)),
        },
        deaths: suspects::deaths(row)?,
    })
}

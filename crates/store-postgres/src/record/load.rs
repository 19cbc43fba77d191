//! What the fold needs to know.

use std::collections::BTreeMap;

use postrider_model::{DeliveryId, EndpointId, UnixMillis};
use postrider_store::fold::{Known, KnownDelivery, KnownEndpoint, KnownWaiting, Touched};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use super::day;
use crate::error::Work;
use crate::log::deliveries::to_state;
use crate::row::to_u32;
use crate::schema::partition;

/// What was loaded.
pub(super) struct Loaded {
    pub(super) known: Known,
    pub(super) now: UnixMillis,
    pub(super) last_seq: i64,
}

pub(super) async fn load(connection: &mut PgConnection, touched: &Touched) -> Work<Loaded> {
    let mut known = Known::default();
    // Rows that wait come first: once they are locked nobody else cancels their deliveries, so what is read after
    // is what stands.
    let ids: Vec<Uuid> = touched.deliveries.iter().map(DeliveryId::as_uuid).collect();
    let rows = sqlx::query(
        "SELECT delivery, run, due_at, leased_at, seq FROM waiting WHERE delivery = ANY($1) ORDER BY delivery \
         FOR UPDATE",
    )
    .bind(&ids)
    .fetch_all(&mut *connection)
    .await?;
    let mut waiting = std::collections::HashMap::with_capacity(rows.len());
    for row in rows {
        let row_of = KnownWaiting {
            run: to_u32(row.try_get("run")?)?,
            due_at: UnixMillis(row.try_get("due_at")?),
            leased_at: row.try_get::<Option<i64>, _>("leased_at")?.map(UnixMillis),
            seq: row.try_get("seq")?,
        };
        waiting.insert(row.try_get::<Uuid, _>("delivery")?, row_of);
    }
    for (day, ids) in by_day(&ids) {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT id, state, attempts FROM {} WHERE id = ANY($1)",
            partition("deliveries", day)
        )))
        .bind(ids)
        .fetch_all(&mut *connection)
        .await?;
        for row in rows {
            let id: Uuid = row.try_get("id")?;
            let delivery = KnownDelivery {
                state: to_state(row.try_get("state")?)?,
                attempts: to_u32(row.try_get("attempts")?)?,
                waiting: waiting.get(&id).copied(),
            };
            known.deliveries.insert(DeliveryId::from_uuid(id), delivery);
        }
    }
    let last_seq = if touched.sequence {
        sqlx::query_scalar("SELECT last_seq FROM sequence FOR UPDATE")
            .fetch_one(&mut *connection)
            .await?
    } else {
        0
    };
    let now = load_endpoints(connection, &touched.endpoints, &mut known).await?;
    Ok(Loaded { known, now, last_seq })
}

/// Reads endpoints, and the clock in the same trip.
async fn load_endpoints(
    connection: &mut PgConnection,
    endpoints: &[EndpointId],
    known: &mut Known,
) -> Work<UnixMillis> {
    let ids: Vec<Uuid> = endpoints.iter().map(EndpointId::as_uuid).collect();
    let rows = sqlx::query(
        "SELECT c.now, e.id, e.disabled OR e.deleted_at IS NOT NULL AS disabled, e.paused, \
         e.ordered, e.ordered AND e.pause_when_exhausted AS pause_when_exhausted, h.failing_since \
         FROM (SELECT now_ms() AS now) c LEFT JOIN endpoints e ON e.id = ANY($1) \
         LEFT JOIN endpoint_health h ON h.endpoint = e.id",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    let mut now = UnixMillis(0);
    for row in rows {
        now = UnixMillis(row.try_get("now")?);
        // Without any endpoint there is the clock alone.
        let Some(id) = row.try_get("id")? else {
            continue;
        };
        let disabled: bool = row.try_get("disabled")?;
        let endpoint = KnownEndpoint {
            held: disabled || row.try_get("paused")?,
            disabled,
            ordered: row.try_get("ordered")?,
            pause_when_exhausted: row.try_get("pause_when_exhausted")?,
            failing_since: row.try_get::<Option<i64>, _>("failing_since")?.map(UnixMillis),
        };
        known.endpoints.insert(EndpointId::from_uuid(id), endpoint);
    }
    Ok(now)
}

/// Ids by their day. A statement over one day names its partition: a bound on the ids would choose it too, but a plan
/// that is made while the partition is empty takes such a bound for the better condition, and reads the whole day.
pub(crate) fn by_day(ids: &[Uuid]) -> BTreeMap<i64, Vec<Uuid>> {
    let mut days: BTreeMap<i64, Vec<Uuid>> = BTreeMap::new();
    for id in ids {
        days.entry(day(DeliveryId::from_uuid(*id).created_at()))
            .or_default()
            .push(*id);
    }
    days
}

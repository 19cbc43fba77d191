//! What the fold needs to know.

use std::collections::BTreeMap;

use postrider_model::{DeliveryId, EndpointId, UnixMillis};
use postrider_store::fold::{Known, KnownDelivery, KnownEndpoint, KnownWaiting, Touched};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::day;
use crate::error::Work;
use crate::log::deliveries::to_state;
use crate::row::{floor, to_u32};
use crate::schema::DAY_MS;

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
    for (low, high, ids) in by_day(&ids) {
        let rows = sqlx::query(
            "SELECT id, state, attempts FROM deliveries WHERE id = ANY($1) AND id >= $2 AND id < $3",
        )
        .bind(ids)
        .bind(low)
        .bind(high)
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
    load_endpoints(connection, &touched.endpoints, &mut known).await?;
    let last_seq = if touched.sequence {
        sqlx::query_scalar("SELECT last_seq FROM sequence FOR UPDATE")
            .fetch_one(&mut *connection)
            .await?
    } else {
        0
    };
    let now: i64 = sqlx::query_scalar("SELECT now_ms()")
        .fetch_one(connection)
        .await?;
    Ok(Loaded {
        known,
        now: UnixMillis(now),
        last_seq,
    })
}

async fn load_endpoints(
    connection: &mut PgConnection,
    endpoints: &[EndpointId],
    known: &mut Known,
) -> Work<()> {
    let ids: Vec<Uuid> = endpoints.iter().map(EndpointId::as_uuid).collect();
    let rows = sqlx::query(
        "SELECT e.id, e.disabled OR e.deleted_at IS NOT NULL AS disabled, e.paused, \
         e.ordered AND e.pause_when_exhausted AS pause_when_exhausted, h.failing_since \
         FROM endpoints e LEFT JOIN endpoint_health h ON h.endpoint = e.id WHERE e.id = ANY($1)",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    for row in rows {
        let disabled: bool = row.try_get("disabled")?;
        let endpoint = KnownEndpoint {
            held: disabled || row.try_get("paused")?,
            disabled,
            pause_when_exhausted: row.try_get("pause_when_exhausted")?,
            failing_since: row.try_get::<Option<i64>, _>("failing_since")?.map(UnixMillis),
        };
        known
            .endpoints
            .insert(EndpointId::from_uuid(row.try_get("id")?), endpoint);
    }
    Ok(())
}

/// Ids by the day whose partition holds them, with the day's bounds: a statement over one day looks at one
/// partition, where a list of ids alone would be looked up in each.
pub(crate) fn by_day(ids: &[Uuid]) -> Vec<(Uuid, Uuid, Vec<Uuid>)> {
    let mut days: BTreeMap<i64, Vec<Uuid>> = BTreeMap::new();
    for id in ids {
        days.entry(day(DeliveryId::from_uuid(*id).created_at()))
            .or_default()
            .push(*id);
    }
    days.into_iter()
        .map(|(day, ids)| {
            let low = floor(UnixMillis(day * DAY_MS));
            (low, floor(UnixMillis((day + 1) * DAY_MS)), ids)
        })
        .collect()
}

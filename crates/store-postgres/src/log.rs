//! What the API reads. Every list is a range of an index by keyset; filters that no index serves are tried on the way, in
//! steps, and their page ends after so many rows were looked at.

mod attempts;
pub(crate) mod deliveries;
pub(crate) mod messages;
mod reading;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_model::{AppId, AttemptId, Claim, DeliveryId, EndpointId, MessageId, UnixMillis};
use postrider_store::{
    AttemptFilter, AttemptRow, DeliveryFilter, DeliveryRow, EndpointCounts, LogStore, MessageFilter,
    MessageRow, Page, Part, StoreError, TimeRange,
};
use sqlx::{PgConnection, Row};
use std::collections::HashMap;

use crate::PostgresStore;
use crate::error::{Work, corrupt};

#[async_trait]
impl LogStore for PostgresStore {
    async fn message(
        &self,
        app: AppId,
        id: MessageId,
        with_payload: bool,
    ) -> Result<Option<MessageRow>, StoreError> {
        self.reading(messages::by_id(self, app, id, with_payload)).await
    }

    async fn message_by_event_id(
        &self,
        app: AppId,
        event_id: &str,
        with_payload: bool,
    ) -> Result<Option<MessageRow>, StoreError> {
        self.reading(messages::by_event_id(self, app, event_id, with_payload))
            .await
    }

    async fn messages(
        &self,
        app: AppId,
        filter: &MessageFilter,
        page: &Page<MessageId>,
    ) -> Result<Part<MessageRow, MessageId>, StoreError> {
        self.reading(messages::list(self, app, filter, page)).await
    }

    async fn expunge_payload(&self, app: AppId, id: MessageId) -> Result<bool, StoreError> {
        self.writing(messages::expunge(self, app, id)).await
    }

    async fn deliveries_of_endpoint(
        &self,
        app: AppId,
        endpoint: EndpointId,
        filter: &DeliveryFilter,
        page: &Page<(MessageId, DeliveryId)>,
        with_payload: bool,
    ) -> Result<Part<(DeliveryRow, MessageRow), (MessageId, DeliveryId)>, StoreError> {
        self.reading(deliveries::of_endpoint(
            self,
            app,
            endpoint,
            filter,
            page,
            with_payload,
        ))
        .await
    }

    async fn deliveries_of_message(
        &self,
        app: AppId,
        message: MessageId,
        page: &Page<(EndpointId, DeliveryId)>,
    ) -> Result<Vec<DeliveryRow>, StoreError> {
        self.reading(deliveries::of_message(self, app, message, page))
            .await
    }

    async fn attempts(
        &self,
        app: AppId,
        filter: &AttemptFilter,
        page: &Page<AttemptId>,
    ) -> Result<Part<AttemptRow, AttemptId>, StoreError> {
        self.reading(attempts::list(self, app, filter, page)).await
    }

    async fn attempt(
        &self,
        app: AppId,
        message: MessageId,
        id: AttemptId,
    ) -> Result<Option<AttemptRow>, StoreError> {
        self.reading(attempts::by_id(self, app, message, id)).await
    }

    async fn expunge_attempt(
        &self,
        app: AppId,
        message: MessageId,
        id: AttemptId,
    ) -> Result<bool, StoreError> {
        self.writing(attempts::expunge(self, app, message, id)).await
    }

    async fn endpoint_counts(
        &self,
        endpoint: EndpointId,
        range: TimeRange,
    ) -> Result<EndpointCounts, StoreError> {
        self.reading(counts(self, endpoint, range)).await
    }

    async fn claims(&self, keys: &[[u8; 32]]) -> Result<Vec<Option<Claim>>, StoreError> {
        self.reading(async {
            let mut connection = self.read.acquire().await?;
            find_claims(&mut connection, keys).await
        })
        .await
    }

    async fn last_claim_ends(&self) -> Result<Option<UnixMillis>, StoreError> {
        self.reading(async {
            let last = sqlx::query_scalar("SELECT max(expires_at) FROM claims");
            let ends: Option<i64> = last.fetch_one(&self.read).await?;
            Ok(ends.map(UnixMillis))
        })
        .await
    }

    async fn payload(&self, id: MessageId) -> Result<Option<(String, Bytes)>, StoreError> {
        self.reading(messages::payload(self, id)).await
    }
}

async fn counts(store: &PostgresStore, endpoint: EndpointId, range: TimeRange) -> Work<EndpointCounts> {
    let row = sqlx::query(
        "SELECT coalesce(sum(delivered), 0)::bigint AS success, coalesce(sum(pending), 0)::bigint AS pending, \
         coalesce(sum(exhausted), 0)::bigint AS fail, coalesce(sum(retrying), 0)::bigint AS sending, \
         coalesce(sum(cancelled), 0)::bigint AS canceled \
         FROM counters WHERE endpoint = $1 AND bucket > $2 AND bucket < $3",
    )
    .bind(endpoint.as_uuid())
    .bind(range.after.map_or(i64::MIN, |after| {
        after.0.saturating_sub(postrider_store::fold::COUNTER_BUCKET_MS)
    }))
    .bind(range.before.unwrap_or(UnixMillis::NEVER).0)
    .fetch_one(&store.read)
    .await?;
    Ok(EndpointCounts {
        success: row.try_get("success")?,
        pending: row.try_get("pending")?,
        fail: row.try_get("fail")?,
        sending: row.try_get("sending")?,
        canceled: row.try_get("canceled")?,
    })
}

pub(crate) async fn find_claims(
    connection: &mut PgConnection,
    keys: &[[u8; 32]],
) -> Work<Vec<Option<Claim>>> {
    let wanted: Vec<&[u8]> = keys.iter().map(<[u8; 32]>::as_slice).collect();
    let rows = sqlx::query(
        "SELECT key, resource, fingerprint, expires_at FROM claims WHERE key = ANY($1) AND expires_at > now_ms()",
    )
    .bind(wanted)
    .fetch_all(connection)
    .await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        let claim = Claim {
            key: sized(row.try_get("key")?)?,
            resource: sized(row.try_get("resource")?)?,
            fingerprint: sized(row.try_get("fingerprint")?)?,
            expires_at: UnixMillis(row.try_get("expires_at")?),
        };
        found.insert(claim.key, claim);
    }
    Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
}

fn sized<const N: usize>(bytes: &[u8]) -> Work<[u8; N]> {
    bytes
        .try_into()
        .map_err(|_| corrupt(format!("a claim's field is not {N} bytes")))
}

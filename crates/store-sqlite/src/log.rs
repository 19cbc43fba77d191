//! `LogStore`: messages, deliveries, attempts, counters, claims.
//!
//! Every list walks one index from its cursor; filters are tried on the way, so a page costs what lies between its
//! rows, not what lies before them, and ends after so many rows were looked at.

pub(crate) mod attempts;
pub(crate) mod deliveries;
mod look;
pub(crate) mod messages;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_model::{AppId, AttemptId, Claim, DeliveryId, EndpointId, MessageId, UnixMillis};
use postrider_store::fold::COUNTER_BUCKET_MS;
use postrider_store::{
    AttemptFilter, AttemptRow, DeliveryFilter, DeliveryRow, EndpointCounts, LogStore, MessageFilter,
    MessageRow, Page, Part, StoreError, TimeRange,
};
use rusqlite::{Connection, params};

use self::deliveries::OfEndpoint;
use crate::SqliteStore;
use crate::claims;
use crate::error::Fallible;

fn counts(connection: &Connection, endpoint: EndpointId, range: TimeRange) -> Fallible<EndpointCounts> {
    let from = range.after.map_or(i64::MIN, |after| {
        after.0.div_euclid(COUNTER_BUCKET_MS) * COUNTER_BUCKET_MS
    });
    let before = range.before.unwrap_or(UnixMillis::NEVER);
    let counts = connection
        .prepare_cached(
            "SELECT coalesce(sum(delivered), 0), coalesce(sum(pending), 0), coalesce(sum(exhausted), 0),
                coalesce(sum(retrying), 0), coalesce(sum(cancelled), 0)
             FROM counters WHERE endpoint = ?1 AND hour >= ?2 AND hour < ?3",
        )?
        .query_row(params![endpoint.as_bytes(), from, before.0], |row| {
            Ok(EndpointCounts {
                success: row.get(0)?,
                pending: row.get(1)?,
                fail: row.get(2)?,
                sending: row.get(3)?,
                canceled: row.get(4)?,
            })
        })?;
    Ok(counts)
}

impl SqliteStore {
    async fn find_message(
        &self,
        app: AppId,
        key: messages::Key,
        wanted: bool,
    ) -> Result<Option<MessageRow>, StoreError> {
        let keyring = self.keyring.clone();
        self.read(move |connection| messages::find(connection, &keyring, app, &key, wanted))
            .await
    }
}

#[async_trait]
impl LogStore for SqliteStore {
    async fn message(
        &self,
        app: AppId,
        id: MessageId,
        with_payload: bool,
    ) -> Result<Option<MessageRow>, StoreError> {
        self.find_message(app, messages::Key::Id(id), with_payload).await
    }

    async fn message_by_event_id(
        &self,
        app: AppId,
        event_id: &str,
        with_payload: bool,
    ) -> Result<Option<MessageRow>, StoreError> {
        self.find_message(app, messages::Key::EventId(event_id.to_owned()), with_payload)
            .await
    }

    async fn messages(
        &self,
        app: AppId,
        filter: &MessageFilter,
        page: &Page<MessageId>,
    ) -> Result<Part<MessageRow, MessageId>, StoreError> {
        let (filter, page, keyring) = (filter.clone(), page.clone(), self.keyring.clone());
        self.list(move |connection| messages::list(connection, &keyring, app, &filter, &page))
            .await
    }

    async fn expunge_payload(&self, app: AppId, id: MessageId) -> Result<bool, StoreError> {
        self.write(move |connection| messages::expunge(connection, app, id))
            .await
    }

    async fn deliveries_of_endpoint(
        &self,
        app: AppId,
        endpoint: EndpointId,
        filter: &DeliveryFilter,
        page: &Page<(MessageId, DeliveryId)>,
        with_payload: bool,
    ) -> Result<Part<(DeliveryRow, MessageRow), (MessageId, DeliveryId)>, StoreError> {
        let query = OfEndpoint {
            app,
            endpoint,
            filter: filter.clone(),
            page: page.clone(),
            with_payload,
        };
        let keyring = self.keyring.clone();
        self.list(move |connection| deliveries::of_endpoint(connection, &keyring, &query))
            .await
    }

    async fn deliveries_of_message(
        &self,
        app: AppId,
        message: MessageId,
        page: &Page<(EndpointId, DeliveryId)>,
    ) -> Result<Vec<DeliveryRow>, StoreError> {
        let page = page.clone();
        self.list(move |connection| deliveries::of_message(connection, app, message, &page))
            .await
    }

    async fn attempts(
        &self,
        app: AppId,
        filter: &AttemptFilter,
        page: &Page<AttemptId>,
    ) -> Result<Part<AttemptRow, AttemptId>, StoreError> {
        let (filter, page) = (filter.clone(), page.clone());
        self.list(move |connection| attempts::list(connection, app, &filter, &page))
            .await
    }

    async fn attempt(
        &self,
        app: AppId,
        message: MessageId,
        id: AttemptId,
    ) -> Result<Option<AttemptRow>, StoreError> {
        self.read(move |connection| attempts::find(connection, app, message, id))
            .await
    }

    async fn expunge_attempt(
        &self,
        app: AppId,
        message: MessageId,
        id: AttemptId,
    ) -> Result<bool, StoreError> {
        self.write(move |connection| attempts::expunge(connection, app, message, id))
            .await
    }

    async fn endpoint_counts(
        &self,
        endpoint: EndpointId,
        range: TimeRange,
    ) -> Result<EndpointCounts, StoreError> {
        self.read(move |connection| counts(connection, endpoint, range))
            .await
    }

    async fn claims(&self, keys: &[[u8; 32]]) -> Result<Vec<Option<Claim>>, StoreError> {
        let (keys, recent) = (keys.to_vec(), Arc::clone(&self.recent_claims));
        self.read(move |connection| claims::find(connection, &recent, &keys))
            .await
    }

    async fn last_claim_ends(&self) -> Result<Option<UnixMillis>, StoreError> {
        self.read(claims::last_end).await
    }

    async fn payload(&self, id: MessageId) -> Result<Option<(String, Bytes)>, StoreError> {
        let keyring = self.keyring.clone();
        self.read(move |connection| {
            let Some((message, Some(sealed))) = messages::sealed_message(connection, id)? else {
                return Ok(None);
            };
            let payload = messages::open_body(&keyring, id, &sealed)?;
            Ok(Some((message.content_type, payload)))
        })
        .await
    }
}

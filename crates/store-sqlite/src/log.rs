//! `LogStore`: messages, deliveries, counters, claims. What concerns attempts is in `attempts`.
//!
//! Every list walks one index from its cursor; filters are tried on the way, so a page costs what lies between its
//! rows, not what lies before them.

use async_trait::async_trait;
use bytes::Bytes;
use postrider_model::{
    AppId, AttemptId, CancelReason, Claim, DeliveryId, EndpointId, Message, MessageId, UnixMillis,
};
use postrider_secrets::Keyring;
use postrider_store::fold::COUNTER_BUCKET_MS;
use postrider_store::{
    AttemptFilter, AttemptRow, DeliveryFilter, DeliveryRow, EndpointCounts, LogStore, MessageFilter,
    MessageRow, Page, StoreError, TimeRange,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::codec::{self, Walk};
use crate::error::Fallible;
use crate::record::body_aad;
use crate::{SqliteStore, attempts, cancel};

pub(crate) const MESSAGE_COLUMNS: &str =
    "m.id, m.app, m.event_type, m.event_id, m.channels, m.content_type, m.accepted_at,
    m.retention_days, m.traceparent, m.body IS NULL";
const DELIVERY_COLUMNS: &str =
    "d.id, d.message, d.endpoint, d.state, d.attempts, d.origin, w.due_at, w.reason";
/// Columns of [`MESSAGE_COLUMNS`].
const MESSAGE_WIDTH: usize = 10;

/// Tests of a message `m`: its type among a JSON list (empty: any), and a channel (`NULL`: any).
macro_rules! message_filter {
    ($types:literal, $channel:literal) => {
        concat!(
            "(",
            $types,
            " = '[]' OR m.event_type IN (SELECT value FROM json_each(",
            $types,
            "))) AND (",
            $channel,
            " IS NULL OR ",
            $channel,
            " IN (SELECT value FROM json_each(m.channels)))"
        )
    };
}
pub(crate) use message_filter;

/// Opens what a payload was sealed in.
pub(crate) fn open_body(keyring: &Keyring, message: MessageId, sealed: &[u8]) -> Result<Bytes, StoreError> {
    keyring
        .open(&body_aad(message), sealed)
        .map(Bytes::from)
        .map_err(|error| StoreError::Corrupt(format!("payload of {message}: {error}")))
}

/// A message without its payload, from the columns that start at `at`; whether the payload is gone.
pub(crate) fn read_message(row: &Row<'_>, at: usize) -> rusqlite::Result<(Message, bool)> {
    let message = Message {
        id: codec::id(row, at)?,
        app: codec::id(row, at + 1)?,
        event_type: row.get(at + 2)?,
        event_id: row.get(at + 3)?,
        channels: codec::channels(row, at + 4)?,
        content_type: row.get(at + 5)?,
        payload: Bytes::new(),
        accepted_at: codec::time(row, at + 6)?,
        payload_retention_days: row.get(at + 7)?,
        traceparent: row.get(at + 8)?,
    };
    Ok((message, row.get(at + 9)?))
}

/// A message and its sealed payload, `None` once that is gone.
pub(crate) fn sealed_message(
    connection: &Connection,
    id: MessageId,
) -> Fallible<Option<(Message, Option<Vec<u8>>)>> {
    let found = connection
        .prepare_cached(&format!(
            "SELECT {MESSAGE_COLUMNS}, b.sealed FROM messages m LEFT JOIN bodies b ON b.n = m.body WHERE m.id = ?1"
        ))?
        .query_row([id.as_bytes()], |row| {
            Ok((read_message(row, 0)?.0, row.get(MESSAGE_WIDTH)?))
        })
        .optional()?;
    Ok(found)
}

/// Completes a row: with the payload when it is wanted.
fn with_payload(
    connection: &Connection,
    keyring: &Keyring,
    (mut message, gone): (Message, bool),
    wanted: bool,
) -> Fallible<MessageRow> {
    if !wanted {
        return Ok(MessageRow {
            message,
            payload_gone: false,
        });
    }
    if !gone {
        let sealed: Option<Vec<u8>> = connection
            .prepare_cached("SELECT b.sealed FROM messages m JOIN bodies b ON b.n = m.body WHERE m.id = ?1")?
            .query_row([message.id.as_bytes()], |row| row.get(0))
            .optional()?;
        let sealed = sealed.ok_or_else(|| StoreError::Corrupt(format!("{} lost its payload", message.id)))?;
        message.payload = open_body(keyring, message.id, &sealed)?;
    }
    Ok(MessageRow {
        message,
        payload_gone: gone,
    })
}

fn read_delivery(row: &Row<'_>) -> rusqlite::Result<DeliveryRow> {
    let waiting = match codec::time_opt(row, 6)? {
        None => None,
        Some(due) => Some((due, codec::reason(row, 7)?)),
    };
    Ok(DeliveryRow {
        id: codec::id(row, 0)?,
        message: codec::id(row, 1)?,
        endpoint: codec::id(row, 2)?,
        state: codec::state(row, 3)?,
        attempts: row.get(4)?,
        trigger: codec::origin(row, 5)?,
        waiting,
    })
}

/// Walks an application's messages.
pub(crate) fn messages_sql(walk: &Walk) -> String {
    format!(
        "SELECT {MESSAGE_COLUMNS} FROM messages m
         WHERE m.app = ?1 AND m.id >= ?2 AND m.id < ?3 AND {}
         ORDER BY m.id {} LIMIT ?6",
        message_filter!("?4", "?5"),
        walk.order(),
    )
}

fn list_messages(
    connection: &Connection,
    keyring: &Keyring,
    app: AppId,
    filter: &MessageFilter,
    page: &Page<MessageId>,
) -> Fallible<Vec<MessageRow>> {
    let walk = Walk::of(page);
    let (from, to) = walk.bounds(page.after.as_ref().map(MessageId::as_bytes), filter.range);
    let rows = connection
        .prepare_cached(&messages_sql(&walk))?
        .query_map(
            params![
                app.as_bytes(),
                from,
                to,
                codec::to_json(&filter.event_types)?,
                filter.channel,
                walk.rows
            ],
            |row| read_message(row, 0),
        )?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    walk.arrange(rows)
        .into_iter()
        .map(|row| with_payload(connection, keyring, row, filter.with_payload))
        .collect()
}

/// Walks an endpoint's deliveries.
pub(crate) fn of_endpoint_sql(walk: &Walk) -> String {
    let order = walk.order();
    format!(
        "SELECT {DELIVERY_COLUMNS}, {MESSAGE_COLUMNS}
         FROM deliveries d JOIN messages m ON m.id = d.message LEFT JOIN waiting w ON w.delivery = d.id
         WHERE d.endpoint = ?1 AND (d.message, d.id) > (?2, ?3) AND (d.message, d.id) < (?4, ?5) AND m.app = ?9
            AND (?6 = '[]' OR d.state IN (SELECT value FROM json_each(?6))) AND {}
         ORDER BY d.message {order}, d.id {order} LIMIT ?10",
        message_filter!("?7", "?8"),
    )
}

/// Which endpoint's deliveries, and how much of their messages.
struct OfEndpoint {
    app: AppId,
    endpoint: EndpointId,
    filter: DeliveryFilter,
    page: Page<(MessageId, DeliveryId)>,
    with_payload: bool,
}

fn list_of_endpoint(
    connection: &Connection,
    keyring: &Keyring,
    query: &OfEndpoint,
) -> Fallible<Vec<(DeliveryRow, MessageRow)>> {
    let OfEndpoint { filter, page, .. } = query;
    let walk = Walk::of(page);
    let after = page.after.as_ref();
    let [low, low_id, high, high_id] = walk.span(
        after.map(|(message, id)| (message.as_bytes(), id.as_bytes())),
        filter.range,
    );
    let states: Vec<i64> = filter.states.iter().copied().map(codec::state_number).collect();
    let rows = connection
        .prepare_cached(&of_endpoint_sql(&walk))?
        .query_map(
            params![
                query.endpoint.as_bytes(),
                low,
                low_id,
                high,
                high_id,
                codec::to_json(&states)?,
                codec::to_json(&filter.event_types)?,
                filter.channel,
                query.app.as_bytes(),
                walk.rows
            ],
            |row| Ok((read_delivery(row)?, read_message(row, 8)?)),
        )?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    walk.arrange(rows)
        .into_iter()
        .map(|(delivery, message)| {
            let message = with_payload(connection, keyring, message, query.with_payload)?;
            Ok((delivery, message))
        })
        .collect()
}

/// Walks a message's deliveries.
pub(crate) fn of_message_sql(walk: &Walk) -> String {
    let order = walk.order();
    format!(
        "SELECT {DELIVERY_COLUMNS}
         FROM deliveries d JOIN messages m ON m.id = d.message LEFT JOIN waiting w ON w.delivery = d.id
         WHERE d.message = ?1 AND m.app = ?2 AND (d.endpoint, d.id) > (?3, ?4) AND (d.endpoint, d.id) < (?5, ?6)
         ORDER BY d.endpoint {order}, d.id {order} LIMIT ?7",
    )
}

fn list_of_message(
    connection: &Connection,
    app: AppId,
    message: MessageId,
    page: &Page<(EndpointId, DeliveryId)>,
) -> Fallible<Vec<DeliveryRow>> {
    let walk = Walk::of(page);
    let after = page.after.as_ref();
    let [low, low_id, high, high_id] = walk.span(
        after.map(|(endpoint, id)| (endpoint.as_bytes(), id.as_bytes())),
        TimeRange::default(),
    );
    let rows = connection
        .prepare_cached(&of_message_sql(&walk))?
        .query_map(
            params![
                message.as_bytes(),
                app.as_bytes(),
                low,
                low_id,
                high,
                high_id,
                walk.rows
            ],
            read_delivery,
        )?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(walk.arrange(rows))
}

fn expunge_payload(connection: &Connection, app: AppId, id: MessageId) -> Fallible<bool> {
    let ours = connection
        .prepare_cached("SELECT 1 FROM messages WHERE id = ?1 AND app = ?2")?
        .exists(params![id.as_bytes(), app.as_bytes()])?;
    if !ours || !cancel::drop_body(connection, id)? {
        return Ok(false);
    }
    cancel::cancel_message(connection, id, CancelReason::PayloadExpunged)?;
    Ok(true)
}

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

pub(crate) fn find_claims(connection: &Connection, keys: &[[u8; 32]]) -> Fallible<Vec<Option<Claim>>> {
    let now = UnixMillis::now();
    let mut find = connection.prepare_cached(
        "SELECT resource, fingerprint, expires_at FROM claims WHERE key = ?1 AND expires_at > ?2",
    )?;
    keys.iter()
        .map(|key| {
            let claim = find.query_row(params![key, now.0], |row| {
                Ok(Claim {
                    key: *key,
                    resource: row.get(0)?,
                    fingerprint: row.get(1)?,
                    expires_at: codec::time(row, 2)?,
                })
            });
            Ok(claim.optional()?)
        })
        .collect()
}

/// Which message to find.
enum MessageKey {
    Id(MessageId),
    EventId(String),
}

fn find_message(
    connection: &Connection,
    keyring: &Keyring,
    app: AppId,
    key: &MessageKey,
    wanted: bool,
) -> Fallible<Option<MessageRow>> {
    let found = match key {
        MessageKey::Id(id) => connection
            .prepare_cached(&format!(
                "SELECT {MESSAGE_COLUMNS} FROM messages m WHERE m.id = ?2 AND m.app = ?1"
            ))?
            .query_row(params![app.as_bytes(), id.as_bytes()], |row| read_message(row, 0)),
        MessageKey::EventId(event_id) => connection
            .prepare_cached(&format!(
                "SELECT {MESSAGE_COLUMNS} FROM messages m WHERE m.app = ?1 AND m.event_id = ?2
                 ORDER BY m.id DESC LIMIT 1"
            ))?
            .query_row(params![app.as_bytes(), event_id], |row| read_message(row, 0)),
    };
    found
        .optional()?
        .map(|row| with_payload(connection, keyring, row, wanted))
        .transpose()
}

impl SqliteStore {
    async fn find_message(
        &self,
        app: AppId,
        key: MessageKey,
        wanted: bool,
    ) -> Result<Option<MessageRow>, StoreError> {
        let keyring = self.keyring.clone();
        self.read(move |connection| find_message(connection, &keyring, app, &key, wanted))
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
        self.find_message(app, MessageKey::Id(id), with_payload).await
    }

    async fn message_by_event_id(
        &self,
        app: AppId,
        event_id: &str,
        with_payload: bool,
    ) -> Result<Option<MessageRow>, StoreError> {
        self.find_message(app, MessageKey::EventId(event_id.to_owned()), with_payload)
            .await
    }

    async fn messages(
        &self,
        app: AppId,
        filter: &MessageFilter,
        page: &Page<MessageId>,
    ) -> Result<Vec<MessageRow>, StoreError> {
        let (filter, page, keyring) = (filter.clone(), page.clone(), self.keyring.clone());
        self.read(move |connection| list_messages(connection, &keyring, app, &filter, &page))
            .await
    }

    async fn expunge_payload(&self, app: AppId, id: MessageId) -> Result<bool, StoreError> {
        self.write(move |connection| expunge_payload(connection, app, id))
            .await
    }

    async fn deliveries_of_endpoint(
        &self,
        app: AppId,
        endpoint: EndpointId,
        filter: &DeliveryFilter,
        page: &Page<(MessageId, DeliveryId)>,
        with_payload: bool,
    ) -> Result<Vec<(DeliveryRow, MessageRow)>, StoreError> {
        let query = OfEndpoint {
            app,
            endpoint,
            filter: filter.clone(),
            page: page.clone(),
            with_payload,
        };
        let keyring = self.keyring.clone();
        self.read(move |connection| list_of_endpoint(connection, &keyring, &query))
            .await
    }

    async fn deliveries_of_message(
        &self,
        app: AppId,
        message: MessageId,
        page: &Page<(EndpointId, DeliveryId)>,
    ) -> Result<Vec<DeliveryRow>, StoreError> {
        let page = page.clone();
        self.read(move |connection| list_of_message(connection, app, message, &page))
            .await
    }

    async fn attempts(
        &self,
        app: AppId,
        filter: &AttemptFilter,
        page: &Page<AttemptId>,
    ) -> Result<Vec<AttemptRow>, StoreError> {
        let (filter, page) = (filter.clone(), page.clone());
        self.read(move |connection| attempts::list(connection, app, &filter, &page))
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
        let keys = keys.to_vec();
        self.read(move |connection| find_claims(connection, &keys)).await
    }

    async fn payload(&self, id: MessageId) -> Result<Option<(String, Bytes)>, StoreError> {
        let keyring = self.keyring.clone();
        self.read(move |connection| {
            let Some((message, Some(sealed))) = sealed_message(connection, id)? else {
                return Ok(None);
            };
            let payload = open_body(&keyring, id, &sealed)?;
            Ok(Some((message.content_type, payload)))
        })
        .await
    }
}

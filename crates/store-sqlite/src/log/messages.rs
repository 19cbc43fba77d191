//! Messages and their payloads.

use bytes::Bytes;
use postrider_model::{AppId, CancelReason, Message, MessageId};
use postrider_secrets::Keyring;
use postrider_store::{MessageFilter, MessageRow, Page, Part, StoreError};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::look::{is_wanted, look};
use crate::cancel;
use crate::codec::{self, Walk};
use crate::error::Fallible;
use crate::record::body_aad;

pub(crate) const MESSAGE_COLUMNS: &str =
    "m.id, m.app, m.event_type, m.event_id, m.channels, m.content_type, m.accepted_at,
    m.retention_days, m.traceparent, m.body IS NULL";
/// Columns of [`MESSAGE_COLUMNS`].
pub(super) const MESSAGE_WIDTH: usize = 10;

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
pub(super) use message_filter;

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
pub(super) fn with_payload(
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

/// Walks an application's messages; the last column is the filter's answer.
pub(crate) fn list_sql(walk: &Walk) -> String {
    format!(
        "SELECT {MESSAGE_COLUMNS}, {}
         FROM messages m WHERE m.app = ?1 AND m.id >= ?2 AND m.id < ?3
         ORDER BY m.id {}",
        message_filter!("?4", "?5"),
        walk.order(),
    )
}

pub(super) fn list(
    connection: &Connection,
    keyring: &Keyring,
    app: AppId,
    filter: &MessageFilter,
    page: &Page<MessageId>,
) -> Fallible<Part<MessageRow, MessageId>> {
    let walk = Walk::of(page);
    let (from, to) = walk.bounds(page.after.as_ref().map(MessageId::as_bytes), filter.range);
    let mut statement = connection.prepare_cached(&list_sql(&walk))?;
    let rows = statement.query(params![
        app.as_bytes(),
        from,
        to,
        codec::to_json(&filter.event_types)?,
        filter.channel,
    ])?;
    let read = |row: &Row<'_>| {
        if !is_wanted(row, MESSAGE_WIDTH)? {
            return Ok(None);
        }
        let message = read_message(row, 0)?;
        with_payload(connection, keyring, message, filter.with_payload).map(Some)
    };
    let payload_bytes = |row: &MessageRow| row.message.payload.len();
    let place = |row: &Row<'_>| codec::id(row, 0);
    look(rows, &walk, filter.is_selective(), read, payload_bytes, place)
}

pub(super) fn expunge(connection: &Connection, app: AppId, id: MessageId) -> Fallible<bool> {
    let ours = connection
        .prepare_cached("SELECT 1 FROM messages WHERE id = ?1 AND app = ?2")?
        .exists(params![id.as_bytes(), app.as_bytes()])?;
    if !ours || cancel::drop_body(connection, id)?.is_none() {
        return Ok(false);
    }
    cancel::cancel_message(connection, id, CancelReason::PayloadExpunged)?;
    Ok(true)
}

/// Which message to find.
pub(super) enum Key {
    Id(MessageId),
    EventId(String),
}

pub(super) fn find(
    connection: &Connection,
    keyring: &Keyring,
    app: AppId,
    key: &Key,
    wanted: bool,
) -> Fallible<Option<MessageRow>> {
    let found = match key {
        Key::Id(id) => connection
            .prepare_cached(&format!(
                "SELECT {MESSAGE_COLUMNS} FROM messages m WHERE m.id = ?2 AND m.app = ?1"
            ))?
            .query_row(params![app.as_bytes(), id.as_bytes()], |row| read_message(row, 0)),
        Key::EventId(event_id) => connection
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

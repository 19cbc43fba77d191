//! Messages and their sealed bodies.

use std::sync::Arc;
use std::time::Duration;

use postrider_model::{Message, MessageId};
use postrider_secrets::Keyring;
use postrider_store::RecordReport;
use rusqlite::{Connection, params};

use crate::codec;
use crate::error::Fallible;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a payload is sealed for.
pub(crate) fn body_aad(message: MessageId) -> [u8; 21] {
    let mut aad = *b"body/0123456789abcdef";
    aad[5..].copy_from_slice(message.as_bytes());
    aad
}

/// Inserts messages and bodies that are new; returns the last body's number.
pub(super) fn insert_messages(
    connection: &Connection,
    messages: &[Arc<Message>],
    keyring: &Keyring,
    mut last_body: i64,
    report: &mut RecordReport,
) -> Fallible<i64> {
    let mut insert = connection.prepare_cached(
        "INSERT OR IGNORE INTO messages (id, app, event_type, event_id, channels, content_type, accepted_at,
            retention_days, traceparent, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    let mut insert_body = connection
        .prepare_cached("INSERT INTO bodies (n, message, expires_at, sealed) VALUES (?1, ?2, ?3, ?4)")?;
    for message in messages {
        let inserted = insert.execute(params![
            message.id.as_bytes(),
            message.app.as_bytes(),
            message.event_type,
            message.event_id,
            codec::channels_text(&message.channels)?,
            message.content_type,
            message.accepted_at.0,
            message.payload_retention_days,
            message.traceparent,
            last_body + 1,
        ])?;
        if inserted == 0 {
            continue;
        }
        last_body += 1;
        report.messages += 1;
        let expires_at = message
            .payload_retention_days
            .map(|days| message.id.created_at().plus(DAY * u32::from(days)).0);
        insert_body.execute(params![
            last_body,
            message.id.as_bytes(),
            expires_at,
            keyring.seal(&body_aad(message.id), &message.payload)
        ])?;
    }
    Ok(last_body)
}

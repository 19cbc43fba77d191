//! Messages and their bodies.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use postrider_model::{Message, MessageId};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::write::column;
use super::{Way, insert};
use crate::error::Work;
use crate::row::{clean, clean_all, clean_opt};
use crate::schema::DAY_MS;

/// Most bytes of bodies in one statement: Postgres takes at most 1 GiB, memory should not either.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

macro_rules! insert_messages {
    ($end:literal) => {
        concat!(
            "INSERT INTO messages (id, app, accepted_at, retention_days, event_type, content_type, event_id, channels, \
             traceparent) SELECT id, app, accepted_at, retention_days, event_type, content_type, event_id, \
             channels::jsonb, traceparent FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::integer[], \
             $5::text[], $6::text[], $7::text[], $8::text[], $9::text[]) AS m(id, app, accepted_at, retention_days, \
             event_type, content_type, event_id, channels, traceparent)",
            $end
        )
    };
}

/// The insert of messages for [`Way::of`]; the careful one tells which are new.
const MESSAGES: [&str; 2] = [
    insert_messages!(""),
    insert_messages!(" ON CONFLICT DO NOTHING RETURNING id"),
];

/// Inserts messages that are new, and their bodies; returns how many. The body of a message that is there already
/// may be expunged or expired, and stays so.
pub(crate) async fn write(
    connection: &mut PgConnection,
    messages: &[Arc<Message>],
    sealed: &HashMap<MessageId, Vec<u8>>,
    way: Way,
) -> Work<usize> {
    let mut seen = HashSet::with_capacity(messages.len());
    let messages: Vec<&Message> = messages
        .iter()
        .filter(|message| seen.insert(message.id))
        .map(Arc::as_ref)
        .collect();
    let messages = messages.as_slice();
    if messages.is_empty() {
        return Ok(0);
    }
    let channels: Vec<Option<String>> = messages
        .iter()
        .map(|message| {
            let channels = clean_all(&message.channels);
            (!channels.is_empty()).then(|| serde_json::to_string(&channels).unwrap_or_default())
        })
        .collect();
    let insert = sqlx::query(way.of(MESSAGES))
        .bind(column(messages, |message| message.id.as_uuid()))
        .bind(column(messages, |message| message.app.as_uuid()))
        .bind(column(messages, |message| message.accepted_at.0))
        .bind(column(messages, |message| {
            message.payload_retention_days.map(i32::from)
        }))
        .bind(column(messages, |message| clean(&message.event_type)))
        .bind(column(messages, |message| clean(&message.content_type)))
        .bind(column(messages, |message| clean_opt(message.event_id.as_ref())))
        .bind(channels)
        .bind(column(messages, |message| {
            clean_opt(message.traceparent.as_ref())
        }));
    let fresh: HashSet<Uuid> = match way {
        Way::Quick => {
            insert
                .execute(&mut *connection)
                .await
                .map_err(|error| way.failed(error))?;
            column(messages, |message| message.id.as_uuid())
                .into_iter()
                .collect()
        }
        Way::Careful => insert
            .fetch_all(&mut *connection)
            .await?
            .iter()
            .map(|row| row.try_get("id"))
            .collect::<Result<_, _>>()?,
    };
    let (mut usual, mut kept) = (Vec::new(), Vec::new());
    for message in messages {
        let Some(body) = sealed.get(&message.id) else {
            continue;
        };
        if fresh.contains(&message.id.as_uuid()) {
            match message.payload_retention_days {
                None => usual.push((message.id.as_uuid(), body.as_slice())),
                Some(days) => {
                    let expires_at = message.id.created_at().0.saturating_add(i64::from(days) * DAY_MS);
                    kept.push((message.id.as_uuid(), expires_at, body.as_slice()));
                }
            }
        }
    }
    bodies(connection, &usual, way).await?;
    kept_bodies(connection, &kept).await?;
    Ok(fresh.len())
}

async fn bodies(connection: &mut PgConnection, bodies: &[(Uuid, &[u8])], way: Way) -> Work<()> {
    for part in parts(bodies, |body| body.1.len()) {
        sqlx::query(way.of(insert!(
            "INSERT INTO bodies (id, sealed) SELECT * FROM unnest($1::uuid[], $2::bytea[])"
        )))
        .bind(column(part, |body| body.0))
        .bind(column(part, |body| body.1))
        .execute(&mut *connection)
        .await
        .map_err(|error| way.failed(error))?;
    }
    Ok(())
}

async fn kept_bodies(connection: &mut PgConnection, bodies: &[(Uuid, i64, &[u8])]) -> Work<()> {
    for part in parts(bodies, |body| body.2.len()) {
        sqlx::query(
            "INSERT INTO bodies_kept (id, expires_at, sealed) \
             SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bytea[]) ON CONFLICT DO NOTHING",
        )
        .bind(column(part, |body| body.0))
        .bind(column(part, |body| body.1))
        .bind(column(part, |body| body.2))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Consecutive rows of at most [`BODY_BYTES_MAX`] together; a larger one alone.
fn parts<T>(rows: &[T], size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, row) in rows.iter().enumerate() {
        if index > start && bytes + size(row) > BODY_BYTES_MAX {
            parts.push(&rows[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += size(row);
    }
    if start < rows.len() {
        parts.push(&rows[start..]);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_all_rows_in_order_and_no_more_than_the_limit() {
        let third = BODY_BYTES_MAX / 3 + 1;
        let sizes = [1, third, third, third, BODY_BYTES_MAX * 2, 5, 6];
        let parts = parts(&sizes, |size| *size);
        assert_eq!(
            parts,
            [
                &[1, third, third][..],
                &[third][..],
                &[BODY_BYTES_MAX * 2][..],
                &[5, 6][..]
            ]
        );
        assert!(super::parts(&[0_usize; 0], |size| *size).is_empty());
    }
}

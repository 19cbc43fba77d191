//! `RecordStore`: loads what the fold needs to know, folds, applies, in one transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use postrider_model::{
    AppId, Claim, DeferReason, DeliveryId, EndpointId, Message, MessageId, Record, UnixMillis,
};
use postrider_secrets::Keyring;
use postrider_store::fold::{
    self, AttemptPut, Changes, DeliveryPut, FoldSettings, Known, KnownDelivery, KnownEndpoint, KnownWaiting,
    WaitingPut,
};
use postrider_store::{RecordReport, RecordStore, StoreError};
use rusqlite::{Connection, OptionalExtension, params};

use crate::cancel::{self, Totals};
use crate::codec;
use crate::config::bump;
use crate::error::Fallible;
use crate::{SqliteStore, waiting};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a payload is sealed for.
pub(crate) fn body_aad(message: MessageId) -> [u8; 21] {
    let mut aad = *b"body/0123456789abcdef";
    aad[5..].copy_from_slice(message.as_bytes());
    aad
}

#[async_trait]
impl RecordStore for SqliteStore {
    async fn record(&self, batch: &[Record]) -> Result<RecordReport, StoreError> {
        let (batch, keyring) = (batch.to_vec(), self.keyring.clone());
        let settings = FoldSettings {
            disable_after: self.disable_after,
        };
        self.write(move |connection| record(connection, &batch, &keyring, settings))
            .await
    }
}

fn record(
    connection: &Connection,
    batch: &[Record],
    keyring: &Keyring,
    settings: FoldSettings,
) -> Fallible<RecordReport> {
    let now = UnixMillis::now();
    let touched = fold::touched(batch);
    let mut before = HashMap::new();
    let known = Known {
        deliveries: known_deliveries(connection, batch, &mut before)?,
        endpoints: known_endpoints(connection, &touched.endpoints)?,
    };
    let (last_seq, last_body): (i64, i64) = connection
        .prepare_cached("SELECT last_seq, last_body FROM progress")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let changes = fold::fold(batch, &known, now, last_seq, settings);
    let mut report = RecordReport {
        stale: changes.stale,
        ..RecordReport::default()
    };
    let next_body = insert_messages(connection, &changes.messages, keyring, last_body, &mut report)?;
    if (next_body, changes.last_seq) != (last_body, last_seq) {
        connection
            .prepare_cached("UPDATE progress SET last_seq = ?1, last_body = ?2")?
            .execute([changes.last_seq, next_body])?;
    }
    put_deliveries(connection, &changes, &known)?;
    insert_attempts(connection, &changes.attempts, &mut report)?;
    put_waiting(connection, &changes, &known, &before, now)?;
    cancel::count(connection, &changes.counters)?;
    put_claims(connection, &changes.claims, now)?;
    put_endpoints(connection, &changes, now, &mut report)?;
    Ok(report)
}

/// Loads each delivery that the batch touches, and the reasons for which they wait.
fn known_deliveries(
    connection: &Connection,
    batch: &[Record],
    reasons: &mut HashMap<DeliveryId, DeferReason>,
) -> Fallible<HashMap<DeliveryId, KnownDelivery>> {
    let mut statement = connection.prepare_cached(
        "SELECT d.state, d.attempts, w.run, w.due_at, w.leased_at, w.seq, w.reason
         FROM deliveries d LEFT JOIN waiting w ON w.delivery = d.id
         WHERE d.message = ?1 AND d.endpoint = ?2 AND d.id = ?3",
    )?;
    let mut known = HashMap::new();
    let mut load = |message: MessageId, endpoint: EndpointId, id: DeliveryId| -> Fallible<()> {
        if known.contains_key(&id) {
            return Ok(());
        }
        let mut reason = None;
        let found = statement
            .query_row(
                params![message.as_bytes(), endpoint.as_bytes(), id.as_bytes()],
                |row| {
                    let waiting = match row.get::<_, Option<u32>>(2)? {
                        None => None,
                        Some(run) => {
                            reason = Some(codec::reason(row, 6)?);
                            Some(KnownWaiting {
                                run,
                                due_at: codec::time(row, 3)?,
                                leased_at: codec::time_opt(row, 4)?,
                                seq: row.get(5)?,
                            })
                        }
                    };
                    Ok(KnownDelivery {
                        state: codec::state(row, 0)?,
                        attempts: row.get(1)?,
                        waiting,
                    })
                },
            )
            .optional()?;
        if let Some(found) = found {
            known.insert(id, found);
            reasons.extend(reason.map(|reason| (id, reason)));
        }
        Ok(())
    };
    for record in batch {
        match record {
            Record::Accepted(accepted) => {
                for delivery in &accepted.deliveries {
                    load(accepted.message.id, delivery.endpoint, delivery.id)?;
                }
            }
            Record::Outcome(outcome) => load(outcome.message, outcome.endpoint, outcome.delivery)?,
        }
    }
    Ok(known)
}

fn known_endpoints(
    connection: &Connection,
    ids: &[EndpointId],
) -> Fallible<HashMap<EndpointId, KnownEndpoint>> {
    let mut statement = connection.prepare_cached(
        "SELECT disabled OR deleted_at IS NOT NULL, paused, ordered AND on_exhausted = 1, failing_since
         FROM endpoints WHERE id = ?1",
    )?;
    let mut known = HashMap::with_capacity(ids.len());
    for id in ids {
        let found = statement
            .query_row([id.as_bytes()], |row| {
                let disabled: bool = row.get(0)?;
                let paused: bool = row.get(1)?;
                Ok(KnownEndpoint {
                    held: disabled || paused,
                    disabled,
                    pause_when_exhausted: row.get(2)?,
                    failing_since: codec::time_opt(row, 3)?,
                })
            })
            .optional()?;
        known.extend(found.map(|found| (*id, found)));
    }
    Ok(known)
}

/// Inserts messages and bodies that are new; returns the last body's number.
fn insert_messages(
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

fn put_deliveries(connection: &Connection, changes: &Changes, known: &Known) -> Fallible<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO deliveries (message, endpoint, id, state, attempts, cancelled, origin)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let mut update = connection.prepare_cached(
        "UPDATE deliveries SET state = ?4, attempts = ?5, cancelled = ?6
         WHERE message = ?1 AND endpoint = ?2 AND id = ?3",
    )?;
    for put in changes.deliveries.values() {
        let DeliveryPut {
            id,
            message,
            endpoint,
            state,
            attempts,
            cancelled,
            ..
        } = put;
        let keys = (message.as_bytes(), endpoint.as_bytes(), id.as_bytes());
        let cancelled = cancelled.map(codec::cancel_number);
        let number = codec::state_number(*state);
        if put.is_new {
            let origin = codec::origin_number(put.trigger);
            insert.execute(params![
                keys.0, keys.1, keys.2, number, attempts, cancelled, origin
            ])?;
            continue;
        }
        let unchanged = known
            .deliveries
            .get(id)
            .is_some_and(|known| known.state == *state && known.attempts == *attempts);
        if !unchanged {
            // A cancelled delivery keeps its reason: the fold does not know it.
            if state.is_terminal()
                && known
                    .deliveries
                    .get(id)
                    .is_some_and(|known| known.state == *state)
            {
                connection
                    .prepare_cached(
                        "UPDATE deliveries SET attempts = ?4 WHERE message = ?1 AND endpoint = ?2 AND id = ?3",
                    )?
                    .execute(params![keys.0, keys.1, keys.2, attempts])?;
            } else {
                update.execute(params![keys.0, keys.1, keys.2, number, attempts, cancelled])?;
            }
        }
    }
    Ok(())
}

fn insert_attempts(
    connection: &Connection,
    attempts: &[AttemptPut],
    report: &mut RecordReport,
) -> Fallible<()> {
    let mut insert = connection.prepare_cached(
        "INSERT OR IGNORE INTO attempts (message, id, endpoint, app, delivery, origin, started_at, duration_ms, class,
            status, response, url)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?;
    for put in attempts {
        let attempt = &put.attempt;
        report.attempts += insert.execute(params![
            put.message.as_bytes(),
            attempt.id.as_bytes(),
            put.endpoint.as_bytes(),
            put.app.as_bytes(),
            put.delivery.as_bytes(),
            codec::origin_number(put.trigger),
            attempt.started_at.0,
            i64::try_from(attempt.duration.as_millis()).unwrap_or(i64::MAX),
            attempt.class as u8,
            attempt.status,
            &attempt.response[..],
            attempt.url,
        ])?;
    }
    Ok(())
}

/// Writes and removes waiting rows, moves their totals, wakes their endpoints.
fn put_waiting(
    connection: &Connection,
    changes: &Changes,
    known: &Known,
    before: &HashMap<DeliveryId, DeferReason>,
    now: UnixMillis,
) -> Fallible<()> {
    let mut remove = connection.prepare_cached("DELETE FROM waiting WHERE delivery = ?1")?;
    let mut totals = Totals::default();
    let mut wake = changes.wake.clone();
    for (id, row) in &changes.waiting {
        if let Some(reason) = before.get(id) {
            totals.add(*reason, -1);
        }
        if let Some(row) = row {
            put_waiting_row(connection, row)?;
            totals.add(row.reason, 1);
            continue;
        }
        remove.execute([id.as_bytes()])?;
        let had = known.deliveries.get(id).and_then(|known| known.waiting);
        if let (Some(put), Some(had)) = (changes.deliveries.get(id), had)
            && had.seq > 0
        {
            // The head of an `ordered` endpoint went: the next one may go now.
            let held = known.endpoints.get(&put.endpoint).is_none_or(|known| known.held);
            let due = if held { UnixMillis::NEVER } else { now };
            let entry = wake.entry(put.endpoint).or_insert((put.app, due));
            entry.1 = entry.1.min(due);
        }
    }
    totals.write(connection)?;
    for (endpoint, (app, due)) in &wake {
        let doomed = known.endpoints.get(endpoint).is_none_or(|known| known.disabled);
        waiting::wake(connection, *endpoint, *app, *due, doomed)?;
    }
    Ok(())
}

fn put_waiting_row(connection: &Connection, row: &WaitingPut) -> Fallible<()> {
    connection
        .prepare_cached(
            "INSERT INTO waiting (delivery, endpoint, app, message, origin, due_at, reason, run, attempts, leased,
                leased_at, seq)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
             ON CONFLICT (delivery) DO UPDATE SET due_at = excluded.due_at, reason = excluded.reason,
                run = excluded.run, attempts = excluded.attempts, leased = excluded.leased,
                leased_at = excluded.leased_at, seq = excluded.seq, expired = 0, orphan = 0,
                deaths = CASE WHEN excluded.leased THEN deaths ELSE 0 END",
        )?
        .execute(params![
            row.delivery.as_bytes(),
            row.endpoint.as_bytes(),
            row.app.as_bytes(),
            row.message.as_bytes(),
            codec::origin_number(row.trigger),
            row.due_at.0,
            codec::reason_number(row.reason),
            row.run,
            row.attempts,
            row.leased,
            row.leased_at.map(|at| at.0),
            row.seq,
        ])?;
    Ok(())
}

/// A claim that stands is not replaced: the first request keeps its key until it expires.
pub(crate) fn put_claims(connection: &Connection, claims: &[Claim], now: UnixMillis) -> Fallible<()> {
    let mut put = connection.prepare_cached(
        "INSERT INTO claims (key, resource, fingerprint, expires_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (key) DO UPDATE SET resource = excluded.resource, fingerprint = excluded.fingerprint,
            expires_at = excluded.expires_at WHERE claims.expires_at <= ?5",
    )?;
    for claim in claims {
        put.execute(params![
            claim.key,
            claim.resource,
            claim.fingerprint,
            claim.expires_at.0,
            now.0
        ])?;
    }
    Ok(())
}

/// What the batch means for endpoints themselves.
fn put_endpoints(
    connection: &Connection,
    changes: &Changes,
    now: UnixMillis,
    report: &mut RecordReport,
) -> Fallible<()> {
    for (endpoint, (_, since)) in &changes.failing {
        connection
            .prepare_cached("UPDATE endpoints SET failing_since = ?2 WHERE id = ?1")?
            .execute(params![endpoint.as_bytes(), since.map(|since| since.0)])?;
    }
    let mut changed: Vec<AppId> = Vec::new();
    for (endpoint, (app, _)) in &changes.disable {
        let done = connection
            .prepare_cached(
                "UPDATE endpoints SET disabled = 1, updated_at = max(?2, updated_at + 1)
                 WHERE id = ?1 AND NOT disabled AND deleted_at IS NULL",
            )?
            .execute(params![endpoint.as_bytes(), now.0])?;
        if done > 0 {
            waiting::reconsider(connection, *endpoint)?;
            report.disabled.push(*endpoint);
            changed.push(*app);
        }
    }
    for (endpoint, app) in &changes.pause {
        let done = connection
            .prepare_cached(
                "UPDATE endpoints SET paused = 1, updated_at = max(?2, updated_at + 1)
                 WHERE id = ?1 AND NOT paused AND deleted_at IS NULL",
            )?
            .execute(params![endpoint.as_bytes(), now.0])?;
        if done > 0 {
            waiting::reconsider(connection, *endpoint)?;
            changed.push(*app);
        }
    }
    changed.sort_unstable();
    changed.dedup();
    for app in changed {
        if let Some(version) = bump(connection, app)? {
            report.reconfigured.push((app, version));
        }
    }
    Ok(())
}

//! Cancelling what waits: the one way in which a delivery ends without an outcome. Its state, its counters and its
//! waiting row move together.

use std::collections::{HashMap, HashSet};

use postrider_model::{CancelReason, DeferReason, DeliveryId, DeliveryState, EndpointId, MessageId};
use postrider_store::fold::{COUNTER_BUCKET_MS, StateCounts};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::codec;
use crate::error::Fallible;
use crate::waiting;

/// A waiting row, as far as cancelling needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waits {
    pub(crate) delivery: DeliveryId,
    pub(crate) message: MessageId,
    pub(crate) endpoint: EndpointId,
    pub(crate) reason: DeferReason,
}

impl Waits {
    pub(crate) const COLUMNS: &'static str = "w.delivery, w.message, w.endpoint, w.reason";

    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            delivery: codec::id(row, 0)?,
            message: codec::id(row, 1)?,
            endpoint: codec::id(row, 2)?,
            reason: codec::reason(row, 3)?,
        })
    }
}

/// Moves of `waiting_totals`, gathered so that each reason is written once.
#[derive(Debug, Default)]
pub(crate) struct Totals(HashMap<DeferReason, i64>);

impl Totals {
    pub(crate) fn add(&mut self, reason: DeferReason, by: i64) {
        *self.0.entry(reason).or_default() += by;
    }

    pub(crate) fn write(self, connection: &Connection) -> Fallible<()> {
        let mut statement = connection.prepare_cached(
            "INSERT INTO waiting_totals (reason, n) VALUES (?1, ?2)
             ON CONFLICT (reason) DO UPDATE SET n = n + excluded.n",
        )?;
        for (reason, by) in self.0 {
            if by != 0 {
                statement.execute(params![codec::reason_number(reason), by])?;
            }
        }
        Ok(())
    }
}

/// Writes moves of the counters.
pub(crate) fn count(
    connection: &Connection,
    counters: &HashMap<(EndpointId, i64), StateCounts>,
) -> Fallible<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO counters (endpoint, hour, pending, retrying, delivered, exhausted, cancelled)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (endpoint, hour) DO UPDATE SET pending = pending + excluded.pending,
            retrying = retrying + excluded.retrying, delivered = delivered + excluded.delivered,
            exhausted = exhausted + excluded.exhausted, cancelled = cancelled + excluded.cancelled",
    )?;
    for ((endpoint, hour), counts) in counters {
        if *counts != StateCounts::default() {
            statement.execute(params![
                endpoint.as_bytes(),
                hour,
                counts.pending,
                counts.retrying,
                counts.delivered,
                counts.exhausted,
                counts.cancelled
            ])?;
        }
    }
    Ok(())
}

/// Start of the counter bucket of a message.
pub(crate) fn hour_of(message: MessageId) -> i64 {
    message.created_at().0.div_euclid(COUNTER_BUCKET_MS) * COUNTER_BUCKET_MS
}

/// Cancels the deliveries of these rows and removes the rows; how many deliveries were cancelled.
pub(crate) fn cancel(connection: &Connection, rows: &[Waits], why: CancelReason) -> Fallible<u64> {
    let mut find = connection
        .prepare_cached("SELECT state FROM deliveries WHERE message = ?1 AND endpoint = ?2 AND id = ?3")?;
    let mut end = connection.prepare_cached(
        "UPDATE deliveries SET state = ?4, cancelled = ?5 WHERE message = ?1 AND endpoint = ?2 AND id = ?3",
    )?;
    let mut remove = connection.prepare_cached("DELETE FROM waiting WHERE delivery = ?1")?;
    let mut counters: HashMap<(EndpointId, i64), StateCounts> = HashMap::new();
    let mut totals = Totals::default();
    let mut cancelled = 0;
    for row in rows {
        let key = (
            row.message.as_bytes(),
            row.endpoint.as_bytes(),
            row.delivery.as_bytes(),
        );
        let state = find
            .query_row(params![key.0, key.1, key.2], |found| codec::state(found, 0))
            .optional()?;
        if let Some(state) = state.filter(|state| !state.is_terminal()) {
            end.execute(params![
                key.0,
                key.1,
                key.2,
                codec::state_number(DeliveryState::Cancelled),
                codec::cancel_number(why)
            ])?;
            let counts = counters.entry((row.endpoint, hour_of(row.message))).or_default();
            counts.add(state, -1);
            counts.add(DeliveryState::Cancelled, 1);
            cancelled += 1;
        }
        if remove.execute([key.2])? > 0 {
            totals.add(row.reason, -1);
        }
    }
    count(connection, &counters)?;
    totals.write(connection)?;
    let endpoints: HashSet<EndpointId> = rows.iter().map(|row| row.endpoint).collect();
    for endpoint in endpoints {
        waiting::wake_ordered(connection, endpoint)?;
    }
    Ok(cancelled)
}

/// Cancels everything that waits for a message.
pub(crate) fn cancel_message(
    connection: &Connection,
    message: MessageId,
    why: CancelReason,
) -> Fallible<u64> {
    let rows = connection
        .prepare_cached(&format!(
            "SELECT {} FROM deliveries d JOIN waiting w ON w.delivery = d.id WHERE d.message = ?1",
            Waits::COLUMNS
        ))?
        .query_map([message.as_bytes()], Waits::read)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    cancel(connection, &rows, why)
}

/// Removes a message's payload; its bytes as stored, when there was one.
pub(crate) fn drop_body(connection: &Connection, message: MessageId) -> Fallible<Option<usize>> {
    let body: Option<(i64, i64)> = connection
        .prepare_cached(
            "SELECT n, length(sealed) FROM bodies WHERE n = (SELECT body FROM messages WHERE id = ?1)",
        )?
        .query_row([message.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((body, bytes)) = body else {
        return Ok(None);
    };
    connection
        .prepare_cached("UPDATE messages SET body = NULL WHERE id = ?1")?
        .execute([message.as_bytes()])?;
    connection
        .prepare_cached("DELETE FROM bodies WHERE n = ?1")?
        .execute([body])?;
    Ok(Some(usize::try_from(bytes).unwrap_or(usize::MAX)))
}

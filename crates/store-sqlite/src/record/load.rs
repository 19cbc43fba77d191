//! What the fold needs to know of what a batch touches.

use std::collections::HashMap;

use postrider_model::{DeferReason, DeliveryId, EndpointId, MessageId, Record};
use postrider_store::fold::{KnownDelivery, KnownEndpoint, KnownWaiting};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::codec;
use crate::error::Fallible;

/// Loads each delivery that the batch touches, and the reasons for which they wait.
pub(super) fn known_deliveries(
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

pub(super) fn known_endpoints(
    connection: &Connection,
    ids: &[EndpointId],
) -> Fallible<HashMap<EndpointId, KnownEndpoint>> {
    let mut statement = connection.prepare_cached(
        "SELECT disabled OR deleted_at IS NOT NULL, paused, ordered AND on_exhausted = 1, failing_since, ordered
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
                    ordered: row.get(4)?,
                })
            })
            .optional()?;
        known.extend(found.map(|found| (*id, found)));
    }
    Ok(known)
}

//! Leasing rows of claimed endpoints.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use postrider_model::{CancelReason, DeliveryId, Job, UnixMillis};
use postrider_secrets::Keyring;
use postrider_store::{Grant, LeasedJob};
use rusqlite::{Connection, OptionalExtension, params};

use super::claim::{Clock, due_rows, look, ordered_run};
use super::look::{earliest, set_next, standing};
use super::suspects::{is_suspect, trial_is_on};
use crate::cancel::{self, Waits};
use crate::codec;
use crate::error::Fallible;
use crate::log::messages;

/// A lease lasts no longer, however often earlier ones expired.
const LEASE_MAX: Duration = Duration::from_secs(3600);
/// A due row whose message is missing is looked at again after this.
const ORPHAN_PAUSE: Duration = Duration::from_secs(1);
/// A suspect whose turn it is not is looked at again after this.
const TURN_PAUSE: Duration = Duration::from_millis(500);
/// Payload bytes of one call; what is beyond stays due.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// A leased delivery whose payload is still sealed.
pub(super) struct SealedJob {
    /// Its message has no payload yet.
    job: Job,
    sealed: Vec<u8>,
    deaths: u32,
}

impl SealedJob {
    fn is_suspect(&self) -> bool {
        is_suspect(self.deaths)
    }
}

/// What became of one row.
enum Leased {
    Out(Box<SealedJob>),
    /// Its message has not been recorded yet.
    Orphan,
    /// Its payload is gone.
    Spent(Waits),
    /// A suspect whose turn it is not.
    NotYet,
    /// Gone since it was listed.
    Nothing,
}

pub(super) fn lease(
    connection: &Connection,
    grants: &[Grant],
    lease: Duration,
    lag: Duration,
) -> Fallible<Vec<SealedJob>> {
    let clock = Clock::new(UnixMillis::now(), lag);
    let now = clock.now;
    let mut leased = Vec::new();
    let mut bytes = 0;
    for grant in grants {
        let standing = standing(connection, grant.endpoint)?;
        if standing.held {
            let never = Some(UnixMillis::NEVER);
            set_next(connection, grant.endpoint, never, UnixMillis(0), standing.doomed)?;
            continue;
        }
        if grant.count > 0 && bytes < BYTES_MAX {
            lease_rows(
                connection,
                grant,
                standing.ordered,
                (clock, lease),
                &mut leased,
                &mut bytes,
            )?;
        }
        let next = earliest(connection, grant.endpoint, standing.ordered, now)?;
        set_next(
            connection,
            grant.endpoint,
            next,
            now.plus(grant.not_before),
            false,
        )?;
        if grant.is_full {
            connection
                .prepare_cached("UPDATE backlog SET is_full = 1 WHERE endpoint = ?1")?
                .execute([grant.endpoint.as_bytes()])?;
        }
    }
    Ok(leased)
}

fn lease_rows(
    connection: &Connection,
    grant: &Grant,
    ordered: bool,
    (clock, lease): (Clock, Duration),
    leased: &mut Vec<SealedJob>,
    bytes: &mut usize,
) -> Fallible<()> {
    let now = clock.now;
    let rows = if ordered {
        if look(connection, grant.endpoint, true, clock, 1)?.since.is_none() {
            return Ok(());
        }
        ordered_run(connection, grant.endpoint, now, grant.count)?
    } else {
        due_rows(connection, grant.endpoint, clock, grant.count)?
    };
    let mut spent = Vec::new();
    for (place, (delivery, _)) in rows.into_iter().enumerate() {
        if *bytes >= BYTES_MAX {
            break;
        }
        match lease_row(
            connection,
            delivery,
            grant,
            (ordered, ordered && place > 0),
            now,
            lease,
        )? {
            Leased::Out(job) => {
                *bytes += job.sealed.len();
                let alone = ordered && job.is_suspect();
                leased.push(*job);
                if alone {
                    break;
                }
            }
            // Behind others of its sequence it stays where it is: it is the next one's head.
            Leased::NotYet if ordered && place > 0 => break,
            // Not leased any more, if it was: to others that is a trial that is on.
            Leased::NotYet => {
                connection
                    .prepare_cached(
                        "UPDATE waiting SET due_at = ?2, expired = expired + leased, leased = 0 WHERE delivery = ?1",
                    )?
                    .execute(params![delivery.as_bytes(), now.plus(TURN_PAUSE).0])?;
                if ordered {
                    break;
                }
            }
            Leased::Orphan => {
                connection
                    .prepare_cached("UPDATE waiting SET orphan = 1, due_at = ?2 WHERE delivery = ?1")?
                    .execute(params![delivery.as_bytes(), now.plus(ORPHAN_PAUSE).0])?;
                if ordered {
                    break;
                }
            }
            Leased::Spent(row) => spent.push(row),
            Leased::Nothing => {}
        }
    }
    cancel::cancel(connection, &spent, CancelReason::PayloadExpired)?;
    Ok(())
}

/// A waiting row, as far as leasing needs it.
struct Row {
    waits: Waits,
    origin: postrider_model::Trigger,
    run: u32,
    attempts: u32,
    expired: u32,
    deaths: u32,
}

fn lease_row(
    connection: &Connection,
    delivery: DeliveryId,
    grant: &Grant,
    (ordered, behind): (bool, bool),
    now: UnixMillis,
    lease: Duration,
) -> Fallible<Leased> {
    let found = connection
        .prepare_cached(&format!(
            "SELECT {}, origin, run, attempts, expired + leased, deaths FROM waiting w WHERE delivery = ?1",
            Waits::COLUMNS
        ))?
        .query_row([delivery.as_bytes()], |row| {
            Ok(Row {
                waits: Waits::read(row)?,
                origin: codec::origin(row, 4)?,
                run: row.get(5)?,
                attempts: row.get(6)?,
                expired: row.get(7)?,
                deaths: row.get(8)?,
            })
        })
        .optional()?;
    let Some(row) = found else {
        return Ok(Leased::Nothing);
    };
    let Some((message, sealed)) = messages::sealed_message(connection, row.waits.message)? else {
        return Ok(Leased::Orphan);
    };
    let Some(sealed) = sealed else {
        return Ok(Leased::Spent(row.waits));
    };
    if is_suspect(row.deaths) && (behind || trial_is_on(connection, now)?) {
        return Ok(Leased::NotYet);
    }
    let factor = 1_u32.checked_shl(row.expired.min(31)).unwrap_or(u32::MAX);
    let until = now.plus(lease.saturating_mul(factor).min(LEASE_MAX.max(lease)));
    let run = row.run + 1;
    connection
        .prepare_cached(
            "UPDATE waiting SET run = ?2, due_at = ?3, leased = 1, leased_at = ?4, expired = ?5, orphan = 0
             WHERE delivery = ?1",
        )?
        .execute(params![delivery.as_bytes(), run, until.0, now.0, row.expired])?;
    let job = Job {
        delivery,
        endpoint: row.waits.endpoint,
        message: Arc::new(message),
        run,
        attempts: row.attempts,
        trigger: row.origin,
        probe: grant.probe,
        has_token: grant.has_token,
        ordered,
        lease_until: Some(until),
    };
    Ok(Leased::Out(Box::new(SealedJob {
        job,
        sealed,
        deaths: row.deaths,
    })))
}

/// Opens the payloads of leased jobs. One that cannot be opened does not stop the others: its lease expires. Nothing
/// behind it in an `ordered` run overtakes it.
pub(super) fn open(leased: Vec<SealedJob>, keyring: &Keyring) -> Vec<LeasedJob> {
    let mut jobs = Vec::with_capacity(leased.len());
    let mut broken = HashSet::new();
    for row in leased {
        let SealedJob {
            mut job,
            sealed,
            deaths,
        } = row;
        if broken.contains(&job.endpoint) {
            continue;
        }
        match messages::open_body(keyring, job.message.id, &sealed) {
            Ok(payload) => {
                Arc::make_mut(&mut job.message).payload = payload;
                jobs.push(LeasedJob { job, deaths });
            }
            Err(error) => {
                tracing::error!(%error, "a due delivery cannot be released");
                if job.ordered {
                    broken.insert(job.endpoint);
                }
            }
        }
    }
    jobs
}

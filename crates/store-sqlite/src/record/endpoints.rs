//! What a batch means for endpoints themselves: since when they fail, who is disabled, who is paused.

use postrider_model::{AppId, EndpointId, UnixMillis};
use postrider_store::RecordReport;
use postrider_store::fold::Changes;
use rusqlite::{Connection, params};

use crate::config::bump;
use crate::error::Fallible;
use crate::waiting;

pub(super) fn put_endpoints(
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
        if turn_on(connection, "disabled", *endpoint, now)? {
            report.disabled.push(*endpoint);
            changed.push(*app);
        }
    }
    for (endpoint, app) in &changes.pause {
        if turn_on(connection, "paused", *endpoint, now)? {
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

/// Sets a flag of an endpoint, and has what waits for it looked at; false when it was set or the endpoint is gone.
fn turn_on(connection: &Connection, flag: &str, endpoint: EndpointId, now: UnixMillis) -> Fallible<bool> {
    let done = connection
        .prepare_cached(&format!(
            "UPDATE endpoints SET {flag} = 1, updated_at = max(?2, updated_at + 1)
             WHERE id = ?1 AND NOT {flag} AND deleted_at IS NULL"
        ))?
        .execute(params![endpoint.as_bytes(), now.0])?;
    if done > 0 {
        waiting::reconsider(connection, endpoint)?;
    }
    Ok(done > 0)
}

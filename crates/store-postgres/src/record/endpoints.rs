//! What a batch does to endpoints: disable, pause, wake, health.

use std::collections::{BTreeMap, HashMap};

use postrider_model::{AppId, EndpointId, UnixMillis};
use postrider_store::RecordReport;
use postrider_store::fold::{Changes, Known};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::write::column;
use crate::config::apps::to_version;
use crate::config::endpoints::flag_for_sweep;
use crate::error::Work;

/// Disables and pauses endpoints, and bumps the versions of their applications.
pub(super) async fn reconfigure(
    connection: &mut PgConnection,
    changes: &Changes,
    now: UnixMillis,
    report: &mut RecordReport,
) -> Work<()> {
    if changes.disable.is_empty() && changes.pause.is_empty() {
        return Ok(());
    }
    let mut apps: Vec<Uuid> = changes.disable.values().map(|(app, _)| app.as_uuid()).collect();
    apps.extend(changes.pause.values().map(AppId::as_uuid));
    sqlx::query("SELECT 1 FROM applications WHERE id = ANY($1) ORDER BY id FOR UPDATE")
        .bind(&apps)
        .execute(&mut *connection)
        .await?;
    let disable: Vec<Uuid> = changes.disable.keys().map(EndpointId::as_uuid).collect();
    let pause: Vec<Uuid> = changes.pause.keys().map(EndpointId::as_uuid).collect();
    let rows = sqlx::query(
        "UPDATE endpoints SET disabled = disabled OR id = ANY($1), paused = paused OR id = ANY($2), \
         updated_at = greatest($3, updated_at + 1) \
         WHERE id = ANY($1 || $2) AND deleted_at IS NULL \
         AND ((id = ANY($1) AND NOT disabled) OR (id = ANY($2) AND NOT paused)) RETURNING id, app, disabled",
    )
    .bind(disable)
    .bind(pause)
    .bind(now.0)
    .fetch_all(&mut *connection)
    .await?;
    let mut changed: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
    for row in rows {
        let (id, app): (Uuid, Uuid) = (row.try_get("id")?, row.try_get("app")?);
        let endpoints = changed.entry(app).or_default();
        if row.try_get("disabled")? {
            endpoints.push(id);
            report.disabled.push(EndpointId::from_uuid(id));
        }
    }
    for (app, disabled) in changed {
        let version: Option<i64> = sqlx::query_scalar(
            "UPDATE applications SET version = version + 1 WHERE id = $1 RETURNING version",
        )
        .bind(app)
        .fetch_optional(&mut *connection)
        .await?;
        if let Some(version) = version {
            report
                .reconfigured
                .push((AppId::from_uuid(app), to_version(version)?));
        }
        flag_for_sweep(connection, AppId::from_uuid(app), &disabled).await?;
    }
    Ok(())
}

/// Makes the scheduler look at endpoints that have something to wait for, in the order of their ids; at one that rests,
/// after its rest.
pub(super) async fn wake(connection: &mut PgConnection, changes: &Changes, known: &Known) -> Work<()> {
    if changes.wake.is_empty() {
        return Ok(());
    }
    let wakes: BTreeMap<EndpointId, (AppId, UnixMillis)> =
        changes.wake.iter().map(|(id, wake)| (*id, *wake)).collect();
    let held = still_held(connection, &wakes, known).await?;
    let rows: Vec<(Uuid, Uuid, i64, bool)> = wakes
        .iter()
        .map(|(id, (app, due))| {
            let (next_due, sweep) = match held.get(&id.as_uuid()) {
                Some(disabled) => (UnixMillis::NEVER, *disabled),
                // Resumed since it was read: it is due at once, and the scheduler sets the right time.
                None if *due == UnixMillis::NEVER => (UnixMillis(0), false),
                None => (*due, false),
            };
            (id.as_uuid(), app.as_uuid(), next_due.0, sweep)
        })
        .collect();
    sqlx::query(
        "INSERT INTO backlog (endpoint, app, next_due, sweep) \
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::boolean[]) \
         ON CONFLICT (endpoint) DO UPDATE SET \
         next_due = least(backlog.next_due, greatest(EXCLUDED.next_due, backlog.not_before)), \
         sweep = backlog.sweep OR EXCLUDED.sweep \
         WHERE backlog.next_due > greatest(EXCLUDED.next_due, backlog.not_before) \
         OR EXCLUDED.sweep AND NOT backlog.sweep",
    )
    .bind(column(&rows, |row| row.0))
    .bind(column(&rows, |row| row.1))
    .bind(column(&rows, |row| row.2))
    .bind(column(&rows, |row| row.3))
    .execute(connection)
    .await?;
    Ok(())
}

/// Of the endpoints that were held when they were read, those that are so still, and whether they are disabled or
/// deleted. The lock keeps a resume out until this transaction ends, so that it finds the backlog's row.
async fn still_held(
    connection: &mut PgConnection,
    wakes: &BTreeMap<EndpointId, (AppId, UnixMillis)>,
    known: &Known,
) -> Work<HashMap<Uuid, bool>> {
    let were: Vec<Uuid> = wakes
        .keys()
        .filter(|id| known.endpoints.get(id).is_some_and(|known| known.held))
        .map(EndpointId::as_uuid)
        .collect();
    if were.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query(
        "SELECT id, disabled OR deleted_at IS NOT NULL AS disabled FROM endpoints WHERE id = ANY($1) \
         AND (disabled OR paused OR deleted_at IS NOT NULL) ORDER BY id FOR SHARE",
    )
    .bind(were)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("id")?, row.try_get("disabled")?)))
        .collect()
}

/// Stores when endpoints began to do nothing but fail.
pub(super) async fn health(
    connection: &mut PgConnection,
    failing: &HashMap<EndpointId, (AppId, Option<UnixMillis>)>,
) -> Work<()> {
    if failing.is_empty() {
        return Ok(());
    }
    let rows: BTreeMap<EndpointId, Option<i64>> = failing
        .iter()
        .map(|(id, (_, since))| (*id, since.map(|since| since.0)))
        .collect();
    let rows: Vec<(EndpointId, Option<i64>)> = rows.into_iter().collect();
    sqlx::query(
        "INSERT INTO endpoint_health (endpoint, failing_since) SELECT * FROM unnest($1::uuid[], $2::bigint[]) \
         ON CONFLICT (endpoint) DO UPDATE SET failing_since = EXCLUDED.failing_since",
    )
    .bind(column(&rows, |row| row.0.as_uuid()))
    .bind(column(&rows, |row| row.1))
    .execute(connection)
    .await?;
    Ok(())
}

//! What retention removes by its time alone, at most `limit` rows of each kind a call.

use std::time::Duration;

use postrider_model::UnixMillis;
use sqlx::PgConnection;

use crate::error::Work;

/// How long the mark of a trial is kept.
const TRIALS_KEPT: Duration = Duration::from_secs(24 * 3600);

const CLAIMS: &str =
    "DELETE FROM claims WHERE key IN (SELECT key FROM claims WHERE expires_at <= $1 LIMIT $2)";
const TRIALS: &str = "DELETE FROM trials WHERE (delivery, run) IN \
     (SELECT delivery, run FROM trials WHERE at < $1 LIMIT $2)";
const COUNTERS: &str = "DELETE FROM counters WHERE (endpoint, bucket) IN \
     (SELECT endpoint, bucket FROM counters WHERE bucket < $1 LIMIT $2)";
const TASKS: &str =
    "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE state <> 0 AND updated_at < $1 LIMIT $2)";

/// Those that the recorder holds right now, for something that came late, go another time: it locks several.
const ENDPOINTS: &str = "WITH gone AS (DELETE FROM endpoints WHERE id IN \
     (SELECT id FROM endpoints WHERE deleted_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING id), \
     health AS (DELETE FROM endpoint_health h USING gone WHERE h.endpoint = gone.id) SELECT id FROM gone";
const APPLICATIONS: &str =
    "DELETE FROM applications WHERE id IN (SELECT id FROM applications WHERE deleted_at < $1 LIMIT $2)";
const KEYS: &str =
    "DELETE FROM api_keys WHERE id IN (SELECT id FROM api_keys WHERE revoked_at < $1 LIMIT $2)";

/// Removes ended claims, old marks of trials, and counters and finished tasks from before `cutoff`, in milliseconds. Returns
/// how many.
pub(super) async fn remove(
    connection: &mut PgConnection,
    now: UnixMillis,
    cutoff: i64,
    limit: i64,
) -> Work<u64> {
    let steps = [
        (CLAIMS, now.0),
        (TRIALS, now.minus(TRIALS_KEPT).0),
        (COUNTERS, cutoff),
        (TASKS, cutoff),
    ];
    run(connection, &steps, limit).await
}

/// Removes what was deleted or revoked before `cutoff`, for when the records from before that are gone. Returns how many.
pub(super) async fn remove_deleted(connection: &mut PgConnection, cutoff: i64, limit: i64) -> Work<u64> {
    let steps = [ENDPOINTS, APPLICATIONS, KEYS].map(|sql| (sql, cutoff));
    run(connection, &steps, limit).await
}

async fn run(connection: &mut PgConnection, steps: &[(&'static str, i64)], limit: i64) -> Work<u64> {
    let mut gone = 0;
    for (sql, before) in steps {
        let done = sqlx::query(*sql)
            .bind(before)
            .bind(limit)
            .execute(&mut *connection)
            .await?;
        gone += done.rows_affected();
    }
    Ok(gone)
}

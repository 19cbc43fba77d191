//! When an endpoint is next looked at.

use postrider_model::UnixMillis;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::Work;

/// When an endpoint's rows go on: the first outside a sequence in their order of due time, or the head of the sequence. NULL
/// without rows.
macro_rules! first_due {
    ($endpoint:literal) => {
        concat!(
            "least((SELECT w.due_at FROM waiting w WHERE w.endpoint = ",
            $endpoint,
            " AND w.seq = 0 ORDER BY w.due_at LIMIT 1), (SELECT w.due_at FROM waiting w WHERE w.endpoint = ",
            $endpoint,
            " AND w.seq > 0 ORDER BY w.seq, w.due_at LIMIT 1))"
        )
    };
}
pub(super) use first_due;

/// An endpoint whose backlog row is set anew. The caller has locked it.
pub(crate) struct Look {
    pub(crate) endpoint: Uuid,
    /// Not looked at before this, unless something comes.
    pub(crate) earliest: UnixMillis,
    /// Not looked at before this, whatever comes.
    pub(crate) not_before: UnixMillis,
    /// The end of a lease has it looked at before that.
    pub(crate) is_full: bool,
}

/// Sets the next look at endpoints to the earliest due time of their rows, or to never when there are none or the
/// endpoint is held.
///
/// Rows outside a sequence come in their order of due time, of a sequence the head says when it goes on; of an `ordered`
/// endpoint nothing does before the leases that are out have ended. An endpoint that was `ordered` once may have rows of a sequence
/// still: the first thousand stand for all.
pub(crate) async fn set(connection: &mut PgConnection, looks: &[Look]) -> Work<()> {
    if looks.is_empty() {
        return Ok(());
    }
    sqlx::query(concat!(
        "UPDATE backlog b SET next_due = CASE WHEN next.due_at IS NULL THEN $3 \
         ELSE greatest(next.due_at, next.earliest, next.not_before) END, \
         not_before = next.not_before, is_full = next.is_full \
         FROM (SELECT u.endpoint, u.earliest, u.not_before, u.is_full, CASE \
           WHEN e.disabled OR e.paused OR e.deleted_at IS NOT NULL THEN NULL \
           WHEN e.ordered THEN greatest(",
        first_due!("u.endpoint"),
        ", (SELECT max(l.due_at) FROM waiting l WHERE l.endpoint = u.endpoint AND l.leased AND l.due_at > $4)) \
           ELSE least((SELECT w.due_at FROM waiting w WHERE w.endpoint = u.endpoint AND w.seq = 0 \
             ORDER BY w.due_at LIMIT 1), (SELECT min(s.due_at) FROM (SELECT w.due_at FROM waiting w \
             WHERE w.endpoint = u.endpoint AND w.seq > 0 ORDER BY w.seq, w.due_at LIMIT 1000) s)) \
           END AS due_at \
           FROM unnest($1::uuid[], $2::bigint[], $5::boolean[], $6::bigint[]) \
             AS u(endpoint, not_before, is_full, earliest) \
           LEFT JOIN endpoints e ON e.id = u.endpoint) next \
         WHERE b.endpoint = next.endpoint",
    ))
    .bind(looks.iter().map(|look| look.endpoint).collect::<Vec<_>>())
    .bind(looks.iter().map(|look| look.not_before.0).collect::<Vec<_>>())
    .bind(UnixMillis::NEVER.0)
    .bind(now(connection).await?.0)
    .bind(looks.iter().map(|look| look.is_full).collect::<Vec<_>>())
    .bind(looks.iter().map(|look| look.earliest.0).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// The store's clock, inside a transaction.
pub(crate) async fn now(connection: &mut PgConnection) -> Work<UnixMillis> {
    let now = sqlx::query_scalar("SELECT now_ms()")
        .fetch_one(connection)
        .await?;
    Ok(UnixMillis(now))
}

/// Locks the backlog rows of endpoints, in the order of their ids.
pub(crate) async fn lock(connection: &mut PgConnection, endpoints: &[Uuid]) -> Work<()> {
    sqlx::query("SELECT 1 FROM backlog WHERE endpoint = ANY($1) ORDER BY endpoint FOR UPDATE")
        .bind(endpoints)
        .execute(connection)
        .await?;
    Ok(())
}

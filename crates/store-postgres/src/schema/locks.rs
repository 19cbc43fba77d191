//! Whether the server has room for the locks of its partitions.
//!
//! A statement whose days are not known when it is planned locks every day's partition with its indexes, for as long as
//! its transaction takes. All transactions of the server share one table of locks; when it is full, any of them fails.

use std::sync::atomic::Ordering;

use crate::PostgresStore;
use crate::error::Work;

/// Locks that the list of an endpoint's deliveries takes for each day: tables and indexes of messages, bodies and
/// deliveries. It takes most of all statements.
const LOCKS_A_DAY: i64 = 10;

impl PostgresStore {
    /// Says, once for this process, when the table of locks is too small for the days that there are.
    pub(super) async fn look_at_locks(&self) -> Work<()> {
        if self.has_seen_locks.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (each, connections, days): (i64, i64, i64) = sqlx::query_as(
            "SELECT current_setting('max_locks_per_transaction')::bigint, \
             current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint, \
             (SELECT count(*) FROM pg_inherits WHERE inhparent = 'deliveries'::regclass)",
        )
        .fetch_one(&self.read)
        .await?;
        if !self.has_seen_locks.swap(true, Ordering::Relaxed)
            && let Some(wanted) = wanted(each, connections, days)
        {
            tracing::warn!(
                days,
                max_locks_per_transaction = each,
                "Postgres may run out of locks: set its max_locks_per_transaction to {wanted} or more and restart it"
            );
        }
        Ok(())
    }
}

/// The setting with which every connection may list deliveries at once; `None` when half of them may as it is.
fn wanted(each: i64, connections: i64, days: i64) -> Option<i64> {
    let of_list = days.saturating_mul(LOCKS_A_DAY);
    let lists = each.saturating_mul(connections) / of_list.max(1);
    (lists < connections / 2).then_some(of_list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_as_it_comes_has_no_room_for_three_months() {
        assert_eq!(wanted(64, 100, 4), None, "a new store");
        assert_eq!(wanted(64, 100, 93), Some(930));
        assert_eq!(wanted(64, 800, 93), Some(930), "more connections take more locks");
        assert_eq!(wanted(1_024, 100, 93), None);
    }
}

//! Sealing anew under the ring's first key. A value is replaced only where it is still the one that was read.

use postrider_store::{ResealCursor, ResealReport, SealedPart};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use crate::PostgresStore;
use crate::error::Work;
use crate::record::write::column;

/// Payloads that are read together take at most so many bytes; a larger one is read alone.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A chunk ends once it sealed so many bytes, so that it ends in time.
const CHUNK_BYTES_MAX: usize = 32 * 1024 * 1024;

pub(crate) async fn chunk(store: &PostgresStore, cursor: ResealCursor, limit: i64) -> Work<ResealReport> {
    match cursor.part {
        SealedPart::Endpoints => endpoints(store, cursor, limit).await,
        SealedPart::Parked => parked(store, cursor, limit).await,
        SealedPart::Payloads => payloads(store, cursor, limit, "bodies").await,
        SealedPart::OwnPayloads => payloads(store, cursor, limit, "bodies_kept").await,
    }
}

/// A report of so many rows; the walk goes on behind the last one if there may be more.
fn report(cursor: ResealCursor, seen: usize, limit: i64, last: Option<u128>) -> ResealReport {
    let more = i64::try_from(seen).unwrap_or(i64::MAX) >= limit;
    ResealReport {
        seen: u64::try_from(seen).unwrap_or(u64::MAX),
        next: cursor.advance(last.filter(|_| more)),
        ..ResealReport::default()
    }
}

async fn endpoints(store: &PostgresStore, cursor: ResealCursor, limit: i64) -> Work<ResealReport> {
    let rows = sqlx::query("SELECT id, headers, secrets FROM endpoints WHERE id > $1 ORDER BY id LIMIT $2")
        .bind(Uuid::from_u128(cursor.after))
        .bind(limit)
        .fetch_all(&store.write)
        .await?;
    let last = rows.last().map(|row| row.try_get::<Uuid, _>("id")).transpose()?;
    let mut report = report(cursor, rows.len(), limit, last.map(|id| id.as_u128()));
    let columns = [
        (
            "headers",
            "UPDATE endpoints SET headers = $2 WHERE id = $3 AND headers = $1",
        ),
        (
            "secrets",
            "UPDATE endpoints SET secrets = $2 WHERE id = $3 AND secrets = $1",
        ),
    ];
    for row in &rows {
        let id: Uuid = row.try_get("id")?;
        for (name, sql) in columns {
            let before: &[u8] = row.try_get(name)?;
            match store.sealer.reseal(name.as_bytes(), id, before) {
                Ok(None) => {}
                Ok(Some(after)) => {
                    let update = sqlx::query(sql).bind(before).bind(after).bind(id);
                    report.resealed += update.execute(&store.write).await?.rows_affected();
                }
                Err(error) => report
                    .unreadable
                    .push(format!("{name} of endpoint {id}: {error}")),
            }
        }
    }
    Ok(report)
}

async fn parked(store: &PostgresStore, cursor: ResealCursor, limit: i64) -> Work<ResealReport> {
    let rows = sqlx::query("SELECT id, bytes FROM parked WHERE id > $1 ORDER BY id LIMIT $2")
        .bind(i64::try_from(cursor.after).unwrap_or(i64::MAX))
        // Each may hold 8 MiB.
        .bind(limit.min(4))
        .fetch_all(&store.write)
        .await?;
    let last = rows.last().map(|row| row.try_get::<i64, _>("id")).transpose()?;
    let last = last.map(|id| u128::from(id.unsigned_abs()));
    let mut report = report(cursor, rows.len(), limit.min(4), last);
    for row in &rows {
        let (id, before): (i64, &[u8]) = (row.try_get("id")?, row.try_get("bytes")?);
        match store.sealer.reseal(b"parked", Uuid::nil(), before) {
            Ok(None) => {}
            Ok(Some(after)) => {
                let update = sqlx::query("UPDATE parked SET bytes = $2 WHERE id = $3 AND bytes = $1")
                    .bind(before)
                    .bind(after)
                    .bind(id);
                report.resealed += update.execute(&store.write).await?.rows_affected();
            }
            Err(error) => report.unreadable.push(format!("parked {id}: {error}")),
        }
    }
    Ok(report)
}

/// Looks at the first bytes of payloads, and reads those that another key sealed.
async fn payloads(
    store: &PostgresStore,
    cursor: ResealCursor,
    limit: i64,
    table: &'static str,
) -> Work<ResealReport> {
    let look = format!(
        "SELECT id, octet_length(sealed) AS bytes, substring(sealed from 1 for 5) AS head FROM {table} \
         WHERE id > $1 ORDER BY id LIMIT $2"
    );
    let rows = sqlx::query(AssertSqlSafe(look))
        .bind(Uuid::from_u128(cursor.after))
        .bind(limit)
        .fetch_all(&store.write)
        .await?;
    let (mut groups, mut seen, mut last) = (Groups::default(), 0, None);
    for row in &rows {
        let (id, bytes): (Uuid, i32) = (row.try_get("id")?, row.try_get("bytes")?);
        (seen, last) = (seen + 1, Some(id.as_u128()));
        if store.sealer.is_stale(row.try_get("head")?) {
            groups.add(id, usize::try_from(bytes).unwrap_or(0));
            if groups.bytes >= CHUNK_BYTES_MAX {
                break;
            }
        }
    }
    let mut report = report(cursor, seen, limit, last);
    if seen < rows.len() {
        report.next = cursor.advance(last);
    }
    for ids in &groups.ids {
        replace(store, table, ids, &mut report).await?;
    }
    Ok(report)
}

/// Ids in order, as many together as may be read at once.
#[derive(Default)]
struct Groups {
    ids: Vec<Vec<Uuid>>,
    /// Of the last group.
    group_bytes: usize,
    bytes: usize,
}

impl Groups {
    fn add(&mut self, id: Uuid, bytes: usize) {
        match self.ids.last_mut() {
            Some(group) if self.group_bytes + bytes <= GROUP_BYTES_MAX => group.push(id),
            _ => {
                self.ids.push(vec![id]);
                self.group_bytes = 0;
            }
        }
        self.group_bytes += bytes;
        self.bytes += bytes;
    }
}

async fn replace(
    store: &PostgresStore,
    table: &'static str,
    ids: &[Uuid],
    report: &mut ResealReport,
) -> Work<()> {
    let (Some(low), Some(high)) = (ids.first(), ids.last()) else {
        return Ok(());
    };
    // The bounds let the server pass over other days' partitions.
    let read = format!("SELECT id, sealed FROM {table} WHERE id = ANY($1) AND id >= $2 AND id <= $3");
    let rows = sqlx::query(AssertSqlSafe(read))
        .bind(ids)
        .bind(low)
        .bind(high)
        .fetch_all(&store.write)
        .await?;
    let anew = seal(store, &rows, report)?;
    let update = format!(
        "UPDATE {table} b SET sealed = u.after FROM unnest($1::uuid[], $2::bytea[], $3::bytea[]) \
         AS u(id, before, after) WHERE b.id = u.id AND b.sealed = u.before AND b.id >= $4 AND b.id <= $5"
    );
    let done = sqlx::query(AssertSqlSafe(update))
        .bind(column(&anew, |value| value.0))
        .bind(column(&anew, |value| value.1))
        .bind(column(&anew, |value| value.2.as_slice()))
        .bind(low)
        .bind(high)
        .execute(&store.write)
        .await?;
    report.resealed += done.rows_affected();
    Ok(())
}

/// Id, value as it is, value as it will be.
type Anew<'a> = (Uuid, &'a [u8], Vec<u8>);

fn seal<'a>(store: &PostgresStore, rows: &'a [PgRow], report: &mut ResealReport) -> Work<Vec<Anew<'a>>> {
    let mut anew = Vec::with_capacity(rows.len());
    for row in rows {
        let (id, before): (Uuid, &[u8]) = (row.try_get("id")?, row.try_get("sealed")?);
        match store.sealer.reseal(b"payload", id, before) {
            Ok(None) => {}
            Ok(Some(after)) => anew.push((id, before, after)),
            Err(error) => report
                .unreadable
                .push(format!("payload of message {id}: {error}")),
        }
    }
    Ok(anew)
}

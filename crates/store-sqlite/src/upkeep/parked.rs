//! What could not be handled, kept for a person to look at.

use bytes::Bytes;
use postrider_model::UnixMillis;
use postrider_secrets::Keyring;
use postrider_store::{PAGE_PAYLOAD_BYTES, ParkedRow, Part};
use rusqlite::{Connection, Row, params};

use crate::codec;
use crate::error::Fallible;

/// Parked rows that are kept; the oldest go first.
const PARKED_MAX: i64 = 10_000;
/// Bytes of a parked row that are kept.
pub(super) const PARKED_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Sealed together with the kind, since the row has no number yet.
const PARKED_AAD: &str = "parked/";

pub(super) fn park(
    connection: &Connection,
    kind: &str,
    reason: &str,
    sealed: &[u8],
    digest: [u8; 32],
) -> Fallible<bool> {
    let inserted = connection
        .prepare_cached(
            "INSERT INTO parked (kind, reason, bytes, at, digest) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![kind, reason, sealed, UnixMillis::now().0, digest])?;
    if inserted == 0 {
        return Ok(false);
    }
    connection
        .prepare_cached("DELETE FROM parked WHERE id <= ?1 - ?2")?
        .execute([connection.last_insert_rowid(), PARKED_MAX])?;
    Ok(true)
}

pub(crate) fn parked_aad(kind: &str) -> String {
    format!("{PARKED_AAD}{kind}")
}

/// Rows until there are `limit`, or their bytes are as many as a page may have.
pub(super) fn list(
    connection: &Connection,
    keyring: &Keyring,
    limit: u32,
    before: Option<i64>,
) -> Fallible<Part<ParkedRow, i64>> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut statement = connection
        .prepare_cached("SELECT id, kind, reason, bytes, at FROM parked WHERE id < ?1 ORDER BY id DESC")?;
    let mut rows = statement.query([before.unwrap_or(i64::MAX)])?;
    let (mut found, mut bytes) = (Vec::<ParkedRow>::new(), 0);
    while let Some(row) = rows.next()? {
        if found.len() >= limit || bytes >= PAGE_PAYLOAD_BYTES {
            let cut = found.last().map(|last| last.id);
            return Ok(Part { rows: found, cut });
        }
        bytes += sealed_bytes(row)?;
        found.push(read_parked(row, keyring)?);
    }
    Ok(Part::whole(found))
}

fn sealed_bytes(row: &Row<'_>) -> rusqlite::Result<usize> {
    Ok(row.get_ref(3)?.as_blob()?.len())
}

pub(crate) fn read_parked(row: &Row<'_>, keyring: &Keyring) -> rusqlite::Result<ParkedRow> {
    let kind: String = row.get(1)?;
    let sealed = row.get_ref(3)?.as_blob()?;
    let opened = keyring.open(parked_aad(&kind).as_bytes(), sealed).ok();
    Ok(ParkedRow {
        id: row.get(0)?,
        kind,
        reason: row.get(2)?,
        sealed_away: opened.is_none(),
        bytes: opened.map(Bytes::from).unwrap_or_default(),
        at: codec::time(row, 4)?,
    })
}

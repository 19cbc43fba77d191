//! What could not be handled, kept for a person to look at.

use bytes::Bytes;
use postrider_model::UnixMillis;
use postrider_secrets::Keyring;
use postrider_store::ParkedRow;
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

pub(crate) fn read_parked(row: &Row<'_>, keyring: &Keyring) -> rusqlite::Result<ParkedRow> {
    let kind: String = row.get(1)?;
    let sealed = row.get_ref(3)?.as_blob()?;
    let bytes = codec::readable(3, keyring.open(parked_aad(&kind).as_bytes(), sealed))?;
    Ok(ParkedRow {
        id: row.get(0)?,
        kind,
        reason: row.get(2)?,
        bytes: Bytes::from(bytes),
        at: codec::time(row, 4)?,
    })
}

//! Sealing anew under the ring's first key. A chunk is read and sealed on a reader; the writer then replaces each value
//! that is still the one that was read.

use postrider_model::{EndpointId, MessageId};
use postrider_secrets::Keyring;
use postrider_store::{ResealCursor, ResealReport, SealedPart, StoreError};
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params};

use crate::config::endpoints::aad;
use crate::error::Fallible;
use crate::record::body_aad;
use crate::upkeep::parked::parked_aad;
use crate::{SqliteStore, codec};

/// A chunk ends once it holds so many bytes, whatever its rows.
const CHUNK_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A value with what it becomes.
struct Anew {
    /// Replaces `?1` by `?2` in the row `?3`.
    sql: &'static str,
    key: Value,
    before: Vec<u8>,
    after: Vec<u8>,
}

#[derive(Default)]
struct Chunk {
    report: ResealReport,
    anew: Vec<Anew>,
    bytes: usize,
}

impl Chunk {
    fn take(
        &mut self,
        keyring: &Keyring,
        (row, column): (&Row<'_>, usize),
        (sql, key): (&'static str, Value),
        (name, aad): (&str, &[u8]),
    ) -> Fallible<()> {
        let sealed = row.get_ref(column)?.as_blob().map_err(rusqlite::Error::from)?;
        match keyring.reseal(aad, sealed) {
            Ok(None) => {}
            Ok(Some(after)) => {
                self.bytes += sealed.len();
                self.anew.push(Anew {
                    sql,
                    key,
                    before: sealed.to_vec(),
                    after,
                });
            }
            Err(error) => self.report.unreadable.push(format!("{name}: {error}")),
        }
        Ok(())
    }
}

fn read(connection: &Connection, keyring: &Keyring, cursor: ResealCursor, limit: u32) -> Fallible<Chunk> {
    let (sql, after) = match cursor.part {
        SealedPart::Endpoints => (
            "SELECT id, headers, secrets FROM endpoints WHERE id > ?1 ORDER BY id LIMIT ?2",
            Value::Blob(cursor.after.to_be_bytes().to_vec()),
        ),
        SealedPart::Parked => (
            "SELECT id, kind, bytes FROM parked WHERE id > ?1 ORDER BY id LIMIT ?2",
            number(cursor.after),
        ),
        SealedPart::Payloads => (
            "SELECT n, message, sealed FROM bodies WHERE n > ?1 ORDER BY n LIMIT ?2",
            number(cursor.after),
        ),
        SealedPart::OwnPayloads => {
            // They are among the others here.
            return Ok(Chunk::default());
        }
    };
    let mut chunk = Chunk::default();
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![after, limit])?;
    let mut last = cursor.after;
    while let Some(row) = rows.next()? {
        last = match cursor.part {
            SealedPart::Endpoints => endpoint(&mut chunk, keyring, row)?,
            SealedPart::Parked => parked(&mut chunk, keyring, row)?,
            SealedPart::Payloads | SealedPart::OwnPayloads => payload(&mut chunk, keyring, row)?,
        };
        chunk.report.seen += 1;
        if chunk.bytes >= CHUNK_BYTES_MAX {
            break;
        }
    }
    let is_end = chunk.report.seen < u64::from(limit) && chunk.bytes < CHUNK_BYTES_MAX;
    chunk.report.next = cursor.advance((!is_end).then_some(last));
    Ok(chunk)
}

fn number(after: u128) -> Value {
    Value::Integer(i64::try_from(after).unwrap_or(i64::MAX))
}

fn endpoint(chunk: &mut Chunk, keyring: &Keyring, row: &Row<'_>) -> Fallible<u128> {
    let id: EndpointId = codec::id(row, 0)?;
    let columns = [
        (
            1,
            "headers",
            "UPDATE endpoints SET headers = ?2 WHERE id = ?3 AND headers = ?1",
        ),
        (
            2,
            "secrets",
            "UPDATE endpoints SET secrets = ?2 WHERE id = ?3 AND secrets = ?1",
        ),
    ];
    for (column, name, sql) in columns {
        let key = Value::Blob(id.as_bytes().to_vec());
        let aad = aad(id, name);
        chunk.take(keyring, (row, column), (sql, key), (&aad, aad.as_bytes()))?;
    }
    Ok(u128::from_be_bytes(*id.as_bytes()))
}

fn parked(chunk: &mut Chunk, keyring: &Keyring, row: &Row<'_>) -> Fallible<u128> {
    let (id, kind): (i64, String) = (row.get(0)?, row.get(1)?);
    let sql = "UPDATE parked SET bytes = ?2 WHERE id = ?3 AND bytes = ?1";
    let (name, aad) = (format!("parked {id}"), parked_aad(&kind));
    chunk.take(
        keyring,
        (row, 2),
        (sql, Value::Integer(id)),
        (&name, aad.as_bytes()),
    )?;
    Ok(u128::from(id.unsigned_abs()))
}

fn payload(chunk: &mut Chunk, keyring: &Keyring, row: &Row<'_>) -> Fallible<u128> {
    let number: i64 = row.get(0)?;
    let message: MessageId = codec::id(row, 1)?;
    let sql = "UPDATE bodies SET sealed = ?2 WHERE n = ?3 AND sealed = ?1";
    let name = format!("payload of {message}");
    chunk.take(
        keyring,
        (row, 2),
        (sql, Value::Integer(number)),
        (&name, &body_aad(message)),
    )?;
    Ok(u128::from(number.unsigned_abs()))
}

fn write(connection: &Connection, anew: &[Anew]) -> Fallible<u64> {
    let mut changed = 0;
    for value in anew {
        changed +=
            connection
                .prepare_cached(value.sql)?
                .execute(params![value.before, value.after, value.key])?;
    }
    Ok(u64::try_from(changed).unwrap_or(u64::MAX))
}

impl SqliteStore {
    pub(crate) async fn reseal_chunk(
        &self,
        cursor: ResealCursor,
        limit: u32,
    ) -> Result<ResealReport, StoreError> {
        let (keyring, limit) = (self.keyring.clone(), limit.max(1));
        let chunk = self
            .read(move |connection| read(connection, &keyring, cursor, limit))
            .await?;
        let mut report = chunk.report;
        if !chunk.anew.is_empty() {
            report.resealed = self
                .write(move |connection| write(connection, &chunk.anew))
                .await?;
        }
        Ok(report)
    }
}

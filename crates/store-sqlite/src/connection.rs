//! Opening connections: the settings that every one of them needs.

use std::path::Path;
use std::time::Duration;

use postrider_store::StoreError;
use rusqlite::{Connection, OpenFlags};

use crate::error::{Fail, Fallible};

/// Bytes of a page in a new file. A transaction writes each page that it changed once: larger ones are fewer.
pub(crate) const PAGE_BYTES: i32 = 8 * 1024;
/// Page cache of the writer, in KiB.
const WRITER_CACHE_KIB: i64 = 16 * 1024;
/// Page cache of a reader, in KiB.
const READER_CACHE_KIB: i64 = 1024;
/// The WAL file is cut back to this size, in bytes, after a checkpoint.
const WAL_KEEP_BYTES: i64 = 128 * 1024 * 1024;
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let open = || -> Fallible<Connection> {
        make_private(path).map_err(|error| StoreError::Unavailable(Box::new(error)))?;
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "page_size", PAGE_BYTES)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "fullfsync", true)?;
        connection.pragma_update(None, "foreign_keys", false)?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
        // The writer's thread sees to it.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.pragma_update(None, "journal_size_limit", WAL_KEEP_BYTES)?;
        connection.set_prepared_statement_cache_capacity(128);
        Ok(connection)
    };
    open().map_err(StoreError::from)
}

/// Makes a file that is not there yet, for its owner alone; SQLite gives the WAL the same mode.
///
/// One that is there is not touched: closing it would drop the locks that this process' other connections hold on it
/// (POSIX locks belong to a process and a file), and with them what keeps another process from deleting the WAL.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    }
}

pub(crate) fn open_reader(path: &Path) -> Result<Connection, Fail> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(48);
    Ok(connection)
}

/// For checkpoints, which sync as the writer would.
pub(crate) fn open_checkpointer(path: &Path) -> Result<Connection, Fail> {
    let connection = open_reader(path)?;
    connection.pragma_update(None, "fullfsync", true)?;
    Ok(connection)
}

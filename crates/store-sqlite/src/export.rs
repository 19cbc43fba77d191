//! The whole file, portion by portion, for a move to another store.
//!
//! It reads over a connection of its own that holds the file exclusively, so nobody else uses it before the move is
//! over; it writes nothing. A portion is bounded in rows and in bytes.

mod stages;
mod tables;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use postrider_secrets::Keyring;
use postrider_store::StoreError;
use postrider_store::transfer::Portion;
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use self::stages::STAGES;
use crate::error::{Fail, Fallible};
use crate::schema;

/// Why a file cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A process has it open.
    #[error("{} is in use; stop Postrider, and every other program that has it open, first", .0.display())]
    InUse(PathBuf),
    /// Anything else.
    #[error("{} cannot be read", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// A file on its way out.
pub struct Export {
    path: PathBuf,
    connection: Connection,
    keyring: Arc<Keyring>,
    stage: usize,
    after: Vec<Value>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export")
            .field("path", &self.path)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl Export {
    /// Takes the file for itself until it is dropped. Blocks for a moment.
    ///
    /// # Errors
    /// [`ExportError::InUse`] while another process has it open; [`ExportError::Store`] when there is none, or it has
    /// another schema than this program's.
    pub fn open(path: &Path, keyring: Arc<Keyring>) -> Result<Self, ExportError> {
        let failed = |fail: Fail| match fail {
            Fail::Sql(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                ExportError::InUse(path.to_owned())
            }
            fail => ExportError::Store {
                path: path.to_owned(),
                source: fail.into(),
            },
        };
        let connection = hold(path).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            connection,
            keyring,
            stage: 0,
            after: (STAGES[0].start)(),
        })
    }

    /// The next portion; `None` after the last. Blocks while it reads.
    ///
    /// # Errors
    /// [`ExportError::Store`] when rows cannot be read or opened.
    pub fn next_portion(&mut self) -> Result<Option<Portion>, ExportError> {
        let Some(stage) = STAGES.get(self.stage) else {
            return Ok(None);
        };
        let (portion, last) = (stage.read)(&self.connection, &self.keyring, &self.after).map_err(|fail| {
            ExportError::Store {
                path: self.path.clone(),
                source: fail.into(),
            }
        })?;
        match last {
            Some(after) => self.after = after,
            None => {
                self.stage += 1;
                self.after = STAGES
                    .get(self.stage)
                    .map_or_else(Vec::new, |stage| (stage.start)());
            }
        }
        Ok(Some(portion))
    }
}

/// Opens the file exclusively. In WAL mode every connection holds a shared lock for as long as it is open, so this
/// fails at once while there is another.
fn hold(path: &Path) -> Fallible<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.pragma_update(None, "busy_timeout", 0)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    schema::check(&connection)?;
    // A transaction that writes takes the lock also where the file is not in WAL mode.
    connection.execute_batch("BEGIN IMMEDIATE; COMMIT")?;
    Ok(connection)
}

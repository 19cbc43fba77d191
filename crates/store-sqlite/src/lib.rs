//! The store on SQLite: the default, with no other service.
//!
//! The files are named after the traits of `postrider-store`, as in the Postgres adapter: `config`, `log`,
//! `record`, `waiting`, `upkeep`; `schema` migrates.
//!
//! Cast:
//! - [`writer`]: one thread owns the one connection that writes. It takes the queued jobs together and commits them
//!   once, so that the price of an fsync is shared. A job that fails undoes only itself.
//! - [`readers`]: a few connections, opened when first needed, for reads. Each read has a deadline, and lists leave one
//!   connection free.
//! - [`checkpoint`]: a thread that copies the WAL into the file beside the writer.
//! - [`claims`]: keys by their hash, merged in bulk.
//! - [`Export`]: the whole store, portion by portion, for a move to another one.
//! - [`cancel`]: the one way in which a waiting delivery ends without an outcome.
//!
//! Guarantees: what an awaited write returned is on disk (WAL, `synchronous=FULL`); a read that starts after it sees
//! it. Endpoint secrets and headers, payloads and parked bytes are sealed by the [`Keyring`], bound to their row.
//! Recorded responses are not sealed: they are the receiver's words, cut to 4 KiB, and lists read many of them.

mod cancel;
mod checkpoint;
mod claims;
mod codec;
mod config;
mod connection;
mod error;
mod export;
mod log;
#[cfg(test)]
mod plans;
mod readers;
mod record;
mod reseal;
mod schema;
mod upkeep;
mod waiting;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use postrider_secrets::Keyring;
use postrider_store::StoreError;
use rusqlite::Connection;

use claims::ended::EndedClaims;
use claims::recent::RecentClaims;
use error::Fallible;

pub use export::{Export, ExportError};

/// Settings of the store.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connections for reads, opened when first needed; at least 2, of which one is kept from lists. Each caches up to
    /// 1 MiB.
    pub readers: usize,
    /// An endpoint that has done nothing but fail for so long is disabled.
    pub disable_after: Duration,
    /// Longest time that one read may take, its wait for a connection included.
    pub read_timeout: Duration,
    /// Seals what must not be readable in a stolen file.
    pub keyring: Arc<Keyring>,
    /// Whether this is the process that serves the file, of which there is one. It brings the schema up to date, merges
    /// claims, and moves the WAL into the file at its end. Others look, or change a row, and hold up nobody.
    pub serves: bool,
}

impl Settings {
    /// Four readers, 5 days of failures, 10 seconds a read, for the process that serves.
    pub fn new(keyring: Arc<Keyring>) -> Self {
        Self {
            readers: 4,
            disable_after: Duration::from_secs(5 * 24 * 3600),
            read_timeout: Duration::from_secs(10),
            keyring,
            serves: true,
        }
    }
}

/// The store in one file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: writer::Writer,
    readers: readers::Readers,
    recent_claims: Arc<RecentClaims>,
    ended_claims: Arc<EndedClaims>,
    keyring: Arc<Keyring>,
    disable_after: Duration,
    path: PathBuf,
}

impl SqliteStore {
    /// Opens the file. The process that serves makes it when there is none, and brings its schema up to date: this blocks
    /// for as long as a migration takes; a new file takes milliseconds.
    ///
    /// # Errors
    /// [`StoreError::Schema`] when a newer program wrote the file, or an older one and this process does not serve;
    /// [`StoreError::Unavailable`] when it cannot be
    /// opened or another process holds its lock for more than 5 seconds.
    pub fn open(path: impl AsRef<Path>, settings: Settings) -> Result<Arc<Self>, StoreError> {
        let path = path.as_ref().to_owned();
        if !settings.serves {
            // Of a file that is there, before anything of it could be changed.
            let checked = connection::open_reader(&path).and_then(|file| schema::check(&file));
            checked.map_err(StoreError::from)?;
        }
        let mut connection = connection::open_writer(&path)?;
        if settings.serves {
            schema::migrate(&mut connection)?;
        }
        let recent_claims = RecentClaims::load(&connection, settings.serves).map_err(StoreError::from)?;
        let recent_claims = Arc::new(recent_claims);
        let claims = Arc::clone(&recent_claims);
        let writer = writer::Writer::start(connection, path.clone(), claims, settings.serves)?;
        let readers = readers::Readers::new(path.clone(), settings.readers, settings.read_timeout);
        Ok(Arc::new(Self {
            writer,
            readers,
            recent_claims,
            ended_claims: Arc::new(EndedClaims::new()),
            keyring: settings.keyring,
            disable_after: settings.disable_after,
            path,
        }))
    }

    /// The version of an existing file's schema; nothing is changed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it cannot be read.
    pub fn schema_version(path: impl AsRef<Path>) -> Result<u32, StoreError> {
        let version = connection::open_reader(path.as_ref()).and_then(|file| schema::version(&file));
        version.map_err(StoreError::from)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Fallible<T> + Send + 'static,
    {
        self.writer.write(work).await
    }

    async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Fallible<T> + Send + 'static,
    {
        self.readers.read(work).await
    }

    async fn list<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Fallible<T> + Send + 'static,
    {
        self.readers.list(work).await
    }
}

//! One process at a time serves an embedded store. A second one would take what the first is delivering for left over, send
//! it again, and know nothing of the first one's idempotency keys.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use postrider_config::{Config, StoreTarget};

use crate::parts;

/// Locks the embedded store until the file is dropped, or the process ends in whatever way; none on Postgres, which serves
/// many. Commands that only look, and `key`, need no lock.
pub(crate) fn lock(config: &Config) -> anyhow::Result<Option<File>> {
    let StoreTarget::Sqlite(store) = config.store_target() else {
        return Ok(None);
    };
    parts::make_private_directory(store.parent().unwrap_or(Path::new(".")))?;
    let mut path = store.clone().into_os_string();
    path.push(".lock");
    let path = Path::new(&path);
    let cannot = || format!("{} cannot be locked", path.display());
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => anyhow::bail!(
            "another Postrider serves the embedded store {}; stop it first, or give this one a store of its own with \
             --data-dir",
            store.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(cannot),
    }
}

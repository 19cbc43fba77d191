//! The key file of the embedded set-up: made at the first start, readable by its owner only.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use crate::keyring::{Keyring, KeyringError};

/// Room for [`crate::KEYS_MAX`] keys and some white space.
const FILE_BYTES_MAX: u64 = 4096;

/// Why the key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Reading or writing failed.
    #[error("cannot use the key file {}", path.display())]
    Io {
        /// The key file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// Others may read or write it.
    #[error(
        "the key file {path} is open to other users (mode {mode:03o}); run `chmod 600 {path}`, and change the key if \
         others may have read it",
        path = path.display()
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Its content is not a key ring.
    #[error("the key file {} does not hold a secrets key; restore it from a backup", path.display())]
    Malformed {
        /// The key file.
        path: PathBuf,
        /// What is wrong with the content.
        #[source]
        source: KeyringError,
    },
}

impl Keyring {
    /// Reads the ring in the file at `path`, or makes one there, mode 0600, on disk before it is used: data sealed
    /// with a key that a power cut takes away could never be read again. When two processes start at once, one
    /// makes the file and both use it.
    ///
    /// # Errors
    /// When the file cannot be read or written, is open to other users, or holds something else. An unusable file
    /// is never replaced: what it sealed would be lost.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyFileError> {
        match load(path) {
            Err(KeyFileError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            loaded => return loaded,
        }
        match create(path) {
            Err(source) if source.kind() != ErrorKind::AlreadyExists => Err(KeyFileError::Io {
                path: path.to_owned(),
                source,
            }),
            _ => load(path),
        }
    }
}

fn load(path: &Path) -> Result<Keyring, KeyFileError> {
    let failed = |source| KeyFileError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Keyring::parse(&text.replace('\n', ",")).map_err(|source| KeyFileError::Malformed {
        path: path.to_owned(),
        source,
    })
}

/// Writes the key beside its place and links it there, so that no reader ever sees half a file.
fn create(path: &Path) -> std::io::Result<()> {
    let (_, text) = Keyring::generate()?;
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.new", std::process::id()));
    let draft = PathBuf::from(draft);
    let written = write_draft(&draft, text.expose_secret()).and_then(|()| std::fs::hard_link(&draft, path));
    let removed = std::fs::remove_file(&draft);
    written.and(removed)?;
    File::open(directory)?.sync_all()
}

fn write_draft(draft: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(draft)?;
    // A draft left by a process of the same number keeps its mode: set it again.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_the_file_once_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secrets.key");
        let first = Keyring::load_or_create(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let second = Keyring::load_or_create(&path).unwrap();
        assert_eq!(first.current(), second.current());
        assert_eq!(
            std::fs::read_dir(directory.path()).unwrap().count(),
            1,
            "a draft stayed behind"
        );
    }

    #[test]
    fn processes_that_start_at_once_use_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secrets.key");
        create(&path).unwrap();
        assert_eq!(create(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn refuses_a_file_that_others_can_read_and_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secrets.key");
        Keyring::load_or_create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Keyring::load_or_create(&path).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, KeyFileError::Exposed { mode: 0o640, .. }),
            "{error:?}"
        );
        assert!(text.contains(&format!("chmod 600 {}", path.display())), "{text}");
    }

    #[test]
    fn never_replaces_a_damaged_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secrets.key");
        write_draft(&path, "psk_damaged").unwrap();
        assert!(matches!(
            Keyring::load_or_create(&path),
            Err(KeyFileError::Malformed { .. })
        ));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "psk_damaged\n");
    }
}

//! What the machine offers: binaries, free ports, directories, users.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

/// The path of an installed program: `PATH` first (but never Debian's RabbitMQ wrapper, which changes the user),
/// then `/usr/lib/rabbitmq/bin`, `/usr/lib/postgresql/*/bin` (the newest), `/usr/sbin` and Homebrew's.
pub fn find_binary(name: &str) -> Option<PathBuf> {
    let mut places = Vec::new();
    if name.starts_with("rabbitmq") {
        places.push(PathBuf::from("/usr/lib/rabbitmq/bin"));
    }
    if let Some(path) = std::env::var_os("PATH") {
        places.extend(std::env::split_paths(&path));
    }
    let mut postgres: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    postgres.sort_by_key(|path| path.file_name().and_then(|n| n.to_str()?.parse::<u32>().ok()));
    places.extend(postgres.into_iter().rev().map(|path| path.join("bin")));
    for place in [
        "/usr/sbin",
        "/usr/local/sbin",
        "/opt/homebrew/bin",
        "/opt/homebrew/sbin",
    ] {
        places.push(place.into());
    }
    places
        .into_iter()
        .map(|place| place.join(name))
        .find(|path| path.is_file())
}

pub(crate) fn need_binary(name: &str) -> Result<PathBuf> {
    find_binary(name).with_context(|| {
        format!(
            "`{name}` is not installed; `cargo xtask test` installs what tests need, or says what to install"
        )
    })
}

/// A port on 127.0.0.1 that nothing listens on now, below the range the kernel hands out for outgoing
/// connections, so that a server can be stopped and find its port free when it comes back. No other test process gets
/// it before this one has ended: it keeps a file of that name locked.
///
/// # Errors
/// A thousand tries found none, or the files cannot be made.
pub fn free_port() -> Result<u16> {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 18_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let directory = target_dir().join("test-ports");
    std::fs::create_dir_all(&directory)?;
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .subsec_nanos();
    let seed = nanos.wrapping_add(std::process::id().wrapping_mul(7_919));
    for _ in 0..1_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(1_009);
        let port = u16::try_from(FIRST + seed.wrapping_add(step) % COUNT)?;
        let file = File::create(directory.join(port.to_string()))?;
        if file.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            TAKEN.lock().unwrap_or_else(PoisonError::into_inner).push(file);
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT)
}

/// Cargo's target directory: the one this executable was built into, or the workspace's.
pub fn target_dir() -> PathBuf {
    let tagged = |path: &Path| path.join("CACHEDIR.TAG").is_file();
    std::env::current_exe()
        .ok()
        .and_then(|exe| exe.ancestors().find(|path| tagged(path)).map(Path::to_path_buf))
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"))
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A user to run as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Whom a server that refuses root should run as: `postgres` if there is one, else `nobody`.
pub(crate) fn unprivileged_user() -> Result<User> {
    let id = |flag: &str, name: &str| -> Option<u32> {
        let output = Command::new("id")
            .args([flag, name])
            .output()
            .ok()
            .filter(|o| o.status.success())?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| {
            Some(User {
                uid: id("-u", name)?,
                gid: id("-g", name)?,
            })
        })
        .context("neither `postgres` nor `nobody` is a user here, and Postgres does not run as root")
}

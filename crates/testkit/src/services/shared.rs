//! One server of each kind for all test processes of a target directory, when nobody started one for them.
//!
//! `target/testkit/KIND/` holds `lock` (taken while looking or starting), `url` (where the server is) and `used`
//! (touched at each use). The server runs under a small shell that kills it, deletes its data and forgets its URL
//! once `used` is ten minutes old. If that shell is killed, the kernel kills the server with it. Should anything be
//! stale, the URL does not answer and the next test starts afresh.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Launch, child, host, probe};

/// A server that is ready to be started, and where it will answer.
pub(crate) struct Prepared {
    pub(crate) launch: Launch,
    pub(crate) url: String,
}

/// $1 the shared directory, $2 the data directory, the rest is the server's command line.
const WATCHDOG: &str = r#"
state=$1; data=$2; shift 2
"$@" & server=$!
finish() { kill -QUIT $server; sleep 2; kill -KILL $server; rm -rf "$data"; exit 0; }
trap finish TERM INT
while kill -0 $server; do
    sleep 15 & wait $!
    if [ -n "$(find "$state/used" -mmin +10)" ]; then rm -f "$state/url"; finish; fi
done
rm -rf "$data"
"#;

const START_LIMIT: Duration = Duration::from_secs(90);

/// The shared server of this kind, started now if there is none.
pub(crate) async fn get(kind: &str, prepare: impl AsyncFnOnce(&Path) -> Result<Prepared>) -> Result<String> {
    let state = host::target_dir().join("testkit").join(kind);
    std::fs::create_dir_all(&state).with_context(|| format!("cannot make {}", state.display()))?;
    let lock = File::create(state.join("lock"))?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    File::create(state.join("used"))?.set_modified(std::time::SystemTime::now())?;
    if let Ok(url) = std::fs::read_to_string(state.join("url"))
        && probe::reachable(&url).await.is_ok()
    {
        return Ok(url);
    }
    let url = start(kind, &state, prepare)
        .await
        .with_context(|| format!("cannot start a shared {kind}"))?;
    std::fs::write(state.join("url"), &url)?;
    drop(lock);
    Ok(url)
}

async fn start(
    kind: &str,
    state: &Path,
    prepare: impl AsyncFnOnce(&Path) -> Result<Prepared>,
) -> Result<String> {
    let data = data_dir(kind)?.keep();
    let prepared = prepare(&data).await?;
    let first = [state.as_os_str(), data.as_os_str()].map(OsString::from);
    prepared.launch.start_detached(WATCHDOG, &first)?;
    probe::answers(&prepared.url, START_LIMIT)
        .await
        .with_context(|| format!("its log ends with:\n{}", child::tail(&prepared.launch.log)))?;
    Ok(prepared.url)
}

/// A new directory for one server's data, removed on drop. It is in the machine's temporary directory and open to
/// other users' eyes because a checkout may lie where the server's own user cannot reach.
pub(crate) fn data_dir(kind: &str) -> Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new()
        .prefix(&format!("postrider-{kind}-"))
        .tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// A file inside a server's directory.
pub(crate) fn log_in(dir: &Path) -> PathBuf {
    dir.join("output.log")
}

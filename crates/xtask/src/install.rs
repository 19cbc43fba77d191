//! Installing Debian packages, as root, without letting them start services.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use postrider_testkit::services::{find_binary, is_root};

use crate::shell::{command, must};

/// Packages' scripts ask this program whether they may start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Whether [`packages`] can work here.
pub(crate) fn possible() -> bool {
    is_root() && Path::new("/etc/debian_version").exists() && find_binary("apt-get").is_some()
}

/// The program, installed with these Debian packages if it is missing and we may.
pub(crate) async fn need(program: &str, debian: &[&str]) -> Result<PathBuf> {
    if find_binary(program).is_none() && possible() {
        packages(debian).await?;
    }
    match find_binary(program) {
        Some(path) => Ok(path),
        None => bail!("`{program}` is needed; Debian's packages: {}", debian.join(" ")),
    }
}

/// Installs Debian packages; services that they bring are not started.
pub(crate) async fn packages(names: &[&str]) -> Result<()> {
    let _forbidden = NoAutostart::begin()?;
    let mut update = command("apt-get");
    update.args(["update", "-q"]);
    must(update).await?;
    let mut install = command("apt-get");
    install
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(names);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    must(install).await
}

/// While this lives, packages do not start services. A policy that is already there is left alone.
struct NoAutostart {
    ours: bool,
}

impl NoAutostart {
    fn begin() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {POLICY}"))?;
        let policy = Self { ours: true };
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755))?;
        Ok(policy)
    }
}

impl Drop for NoAutostart {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = std::fs::remove_file(POLICY)
        {
            eprintln!("xtask: remove {POLICY} by hand: {error}");
        }
    }
}

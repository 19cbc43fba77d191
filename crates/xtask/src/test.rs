//! `cargo xtask test`.

use std::path::PathBuf;
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use postrider_testkit::services::target_dir;
use tokio::process::Command;

use crate::install::need;
use crate::sdk;
use crate::servers::Servers;
use crate::shell::{cargo, command, root, status, works};

/// Checks what is deployed: compose file, image, chart, alerts, dashboards, workflows.
const DEPLOY_CHECK: &str = "tests/deploy/check.sh";

/// Brings everything up, runs the tests and stops what was started; returns the exit code of the first part that
/// failed.
pub(crate) async fn run(filters: &[String]) -> Result<u8> {
    // An interrupt reaches the test runner, too: it ends, and then we clean up.
    tokio::spawn(async { while tokio::signal::ctrl_c().await.is_ok() {} });
    let mut env = sdk::prepare().await?;
    need("promtool", &["prometheus"]).await?;
    if let Some(code) = failed(build().await?) {
        return Ok(code);
    }
    env.push(("POSTRIDER_BIN", keep_binary()?.display().to_string()));
    let servers = Servers::start().await?;
    env.extend(servers.env.iter().cloned());
    let outcome = tests(filters, &env).await;
    servers.stop().await;
    outcome
}

async fn tests(filters: &[String], env: &[(&'static str, String)]) -> Result<u8> {
    let runner = if works(cargo(&["nextest", "--version"])).await {
        cargo(&["nextest", "run", "--workspace"])
    } else {
        eprintln!("xtask: cargo-nextest is not installed; using `cargo test`");
        cargo(&["test", "--workspace", "--lib", "--bins", "--tests"])
    };
    if let Some(code) = failed(status(with(runner, filters, env)).await?) {
        return Ok(code);
    }
    if filters.is_empty() {
        let doc = cargo(&["test", "--quiet", "--doc", "--workspace"]);
        if let Some(code) = failed(status(with(doc, &[], env)).await?) {
            return Ok(code);
        }
        return Ok(failed(status(command(root().join(DEPLOY_CHECK))).await?).unwrap_or(0));
    }
    Ok(0)
}

fn with(mut command: Command, args: &[String], env: &[(&'static str, String)]) -> Command {
    command
        .args(args)
        .envs(env.iter().map(|(name, value)| (name, value)));
    command
}

async fn build() -> Result<ExitStatus> {
    status(cargo(&[
        "build",
        "--package",
        "postrider",
        "--features",
        "failpoints",
    ]))
    .await
}

/// Copies the binary with failpoints to where the workspace's build, which has none, does not replace it.
fn keep_binary() -> Result<PathBuf> {
    let built = target_dir().join("debug/postrider");
    if !built.is_file() {
        bail!("cargo built no {}", built.display());
    }
    let place = target_dir().join("testkit/bin");
    std::fs::create_dir_all(&place)?;
    // Renamed into place: a copy that still runs keeps the old file.
    let (new, kept) = (place.join("postrider.new"), place.join("postrider"));
    std::fs::copy(&built, &new).with_context(|| format!("cannot copy {}", built.display()))?;
    std::fs::rename(&new, &kept)?;
    Ok(kept)
}

/// The exit code to pass on, if this was a failure. A signal counts as 1.
fn failed(status: ExitStatus) -> Option<u8> {
    if status.success() {
        return None;
    }
    Some(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    )
}

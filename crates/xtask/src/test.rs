//! `cargo xtask test`.

use std::path::PathBuf;
use std::process::{ExitStatus, Output};

use anyhow::{Context, Result, bail};
use postrider_testkit::services::target_dir;
use tokio::process::Command;

use crate::install::need;
use crate::sdk;
use crate::servers::Servers;
use crate::shell::{cargo, command, root, said, status, works};

/// Checks what is deployed: compose file, image, chart, alerts, dashboards, workflows.
const DEPLOY_CHECK: &str = "tests/deploy/check.sh";
/// How much of a part that failed is told again at the end.
const LINES: usize = 40;

/// Brings everything up, runs the tests and stops what was started; returns the exit code of the first part that
/// failed.
pub(crate) async fn run(filters: &[String]) -> Result<u8> {
    // An interrupt reaches the test runner, too: it ends, and then we clean up.
    tokio::spawn(async { while tokio::signal::ctrl_c().await.is_ok() {} });
    let mut env = sdk::prepare().await?;
    need("promtool", &["prometheus"]).await?;
    need("go", &["golang-go"]).await?;
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

/// Runs every part, whatever fails; returns the exit code of the first that failed. The test runner comes last: it ends
/// with what failed, and the end is where a log is read first. What else failed is told again behind it.
async fn tests(filters: &[String], env: &[(&'static str, String)]) -> Result<u8> {
    let mut failures = vec![];
    if filters.is_empty() {
        let doc = with(cargo(&["test", "--quiet", "--doc", "--workspace"]), &[], env);
        for part in [doc, command(root().join(DEPLOY_CHECK))] {
            let (shown, output) = said(part).await?;
            if let Some(code) = failed(output.status) {
                failures.push((code, shown, last_lines(&output)));
            }
        }
    }
    let runner = if works(cargo(&["nextest", "--version"])).await {
        cargo(&["nextest", "run", "--workspace"])
    } else {
        eprintln!("xtask: cargo-nextest is not installed; using `cargo test`");
        cargo(&[
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
        ])
    };
    let runner_failed = failed(status(with(runner, filters, env)).await?);
    for (_, shown, text) in &failures {
        eprintln!("xtask: {shown} failed:\n{text}");
    }
    Ok(failures
        .first()
        .map(|(code, ..)| *code)
        .or(runner_failed)
        .unwrap_or(0))
}

/// The end of what a command printed.
fn last_lines(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
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

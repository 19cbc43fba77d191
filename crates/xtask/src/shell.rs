//! Running commands, and saying which.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap_or(root)
}

/// A command that runs in the workspace's root and ends with this process.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).kill_on_drop(true);
    command
}

/// The cargo that runs us, without what it tells about *this* package: build scripts that watch such variables
/// would run again.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Runs a command to its end with the terminal's output.
pub(crate) async fn status(mut command: Command) -> Result<ExitStatus> {
    eprintln!("xtask: {}", show(&command));
    let status = command.stdin(Stdio::null()).status().await;
    status.with_context(|| format!("cannot run {}", show(&command)))
}

/// Runs a command to its end and shows what it printed; returns the command's line and what it printed.
pub(crate) async fn said(mut command: Command) -> Result<(String, Output)> {
    let shown = show(&command);
    eprintln!("xtask: {shown}");
    let output = command.stdin(Stdio::null()).output().await;
    let output = output.with_context(|| format!("cannot run {shown}"))?;
    for stream in [&output.stdout, &output.stderr] {
        eprint!("{}", String::from_utf8_lossy(stream));
    }
    Ok((shown, output))
}

/// Runs a command that must succeed and returns what it printed; its errors go to the terminal.
pub(crate) async fn output(mut command: Command) -> Result<String> {
    let shown = show(&command);
    eprintln!("xtask: {shown}");
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await;
    let output = output.with_context(|| format!("cannot run {shown}"))?;
    ensure!(output.status.success(), "{shown} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that must succeed.
pub(crate) async fn must(command: Command) -> Result<()> {
    let shown = show(&command);
    let status = status(command).await?;
    ensure!(status.success(), "{shown} ended with {status}");
    Ok(())
}

/// Whether a command can be run and succeeds; its output is not shown.
pub(crate) async fn works(mut command: Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

fn show(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

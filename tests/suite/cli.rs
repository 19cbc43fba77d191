//! `postrider` as an operator types it.

use std::process::{Output, Stdio};

use anyhow::{Result, ensure};
use postrider_testkit::process::binary;
use tokio::process::Command;

/// Runs it with this environment and none of the tests' own settings.
pub(crate) async fn output(args: &[&str], env: &[(&str, &str)]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("POSTRIDER_") {
            command.env_remove(name);
        }
    }
    Ok(command.envs(env.iter().copied()).output().await?)
}

/// What it prints; it must succeed.
pub(crate) async fn run(args: &[&str], env: &[(&str, &str)]) -> Result<String> {
    let output = output(args, env).await?;
    let said = String::from_utf8(output.stdout)?;
    let failed = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{args:?} failed: {said}{failed}");
    Ok(said)
}

/// What it says when it refuses; it must.
pub(crate) async fn refused(args: &[&str], env: &[(&str, &str)]) -> Result<String> {
    let output = output(args, env).await?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "{args:?} did not refuse: {said}");
    Ok(String::from_utf8(output.stderr)?)
}

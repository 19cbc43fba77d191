//! The public SDKs are clients of Postrider, on both set-ups; what they receive verifies with the public verifiers.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use postrider_testkit::services::target_dir;
use tokio::process::Command;

use crate::stack::{Shape, Stack};

const DRIVERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sdk");

/// Runs a driver against the stack; it says by itself what did not hold.
async fn drive(stack: &Stack, command: &mut Command) -> Result<()> {
    let output = command
        .arg(stack.gateways[0].url())
        .arg(stack.key())
        .kill_on_drop(true)
        .output()
        .await
        .context("the SDK's driver cannot be run; `cargo xtask test` installs the SDKs")?;
    ensure!(
        output.status.success(),
        "{}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        stack.gateways[0].log()
    );
    Ok(())
}

/// What `cargo xtask test` prepared, or what an earlier run of it left in the target directory.
fn prepared(variable: &str, fallback: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| target_dir().join(fallback), PathBuf::from)
}

/// The Python that can import the SDKs.
pub(crate) fn python() -> Command {
    Command::new(prepared("POSTRIDER_TEST_PYTHON", "sdk-python/bin/python"))
}

/// The directory in which Node finds the SDKs.
pub(crate) fn node_dir() -> PathBuf {
    prepared("POSTRIDER_TEST_NODE_DIR", "sdk-js")
}

fn python_driver() -> Command {
    let mut command = python();
    command.arg(format!("{DRIVERS}/drive.py"));
    command
}

/// Modules are found from where the script lies, so it is copied beside them.
fn javascript_driver() -> Result<Command> {
    let script = node_dir().join("drive.mjs");
    std::fs::copy(format!("{DRIVERS}/drive.mjs"), &script).with_context(|| {
        format!(
            "{} cannot be written; `cargo xtask test` prepares it",
            script.display()
        )
    })?;
    let mut command = Command::new("node");
    command.arg(script);
    Ok(command)
}

#[tokio::test]
async fn the_python_sdk_drives_the_embedded_set_up() -> Result<()> {
    drive(&Stack::embedded().await?, &mut python_driver()).await
}

#[tokio::test]
async fn the_python_sdk_drives_the_scaled_out_set_up() -> Result<()> {
    drive(&Stack::scaled(Shape::SMALL).await?, &mut python_driver()).await
}

#[tokio::test]
async fn the_javascript_sdk_drives_the_embedded_set_up() -> Result<()> {
    drive(&Stack::embedded().await?, &mut javascript_driver()?).await
}

#[tokio::test]
async fn the_javascript_sdk_drives_the_scaled_out_set_up() -> Result<()> {
    drive(&Stack::scaled(Shape::SMALL).await?, &mut javascript_driver()?).await
}

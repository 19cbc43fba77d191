//! The documents say what is there.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use postrider_testkit::process::binary;
use tokio::process::Command;

fn read(path: &str) -> Result<String> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path);
    std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
}

/// The binary, without the variables that tests are run with.
fn postrider() -> Result<Command> {
    let mut command = Command::new(binary()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("POSTRIDER_") {
            command.env_remove(name);
        }
    }
    Ok(command)
}

#[tokio::test]
async fn the_reference_of_the_settings_is_fresh() -> Result<()> {
    let output = postrider()?
        .args(["check-config", "--reference"])
        .output()
        .await?;
    let reference = String::from_utf8(output.stdout)?;
    let page = read("docs/limits.md")?;
    let (_, rest) = page
        .split_once("<!-- begin reference -->\n")
        .context("no begin mark in docs/limits.md")?;
    let (written, _) = rest
        .split_once("<!-- end reference -->")
        .context("no end mark in docs/limits.md")?;
    ensure!(
        written == reference,
        "docs/limits.md is stale; replace its table with the output of `postrider check-config --reference`"
    );
    Ok(())
}

#[tokio::test]
async fn every_command_explains_itself() -> Result<()> {
    for command in [
        "serve",
        "migrate",
        "key",
        "check-config",
        "healthcheck",
        "sink",
        "status",
        "top",
        "poison",
    ] {
        let output = postrider()?.args([command, "--help"]).output().await?;
        ensure!(
            output.status.success() && output.stdout.len() > 200,
            "`postrider {command} --help` says little"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_mix_that_cannot_work_is_refused_with_the_reason() -> Result<()> {
    let output = postrider()?
        .args(["serve", "--role", "worker", "--listen", "127.0.0.1:0"])
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        !output.status.success() && said.contains("POSTRIDER_BROKER__URL"),
        "it said: {said}"
    );
    let output = postrider()?
        .arg("check-config")
        .env("POSTRIDER_BROKR__URL", "amqp://127.0.0.1")
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        !output.status.success() && said.contains("POSTRIDER_BROKER__URL"),
        "it said: {said}"
    );
    Ok(())
}

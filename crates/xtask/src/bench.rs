//! `cargo xtask bench`: builds both sides with the release profile and measures one against the other.

use anyhow::{Context, Result};

use crate::shell::{cargo, command, must, root, status};

/// Builds and runs the bench; its exit code.
pub(crate) async fn run(args: &[String]) -> Result<u8> {
    must(cargo(&[
        "build",
        "--release",
        "-p",
        "postrider",
        "-p",
        "postrider-bench",
    ]))
    .await?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let mut bench = command(target.join("release/postrider-bench"));
    bench.arg("run").args(args);
    // What was built just now is this commit. Of another binary, or started by hand, the bench cannot know.
    let is_ours = !args.iter().any(|arg| arg.starts_with("--postrider"));
    let git = ["describe", "--always", "--dirty", "--exclude=*"];
    if is_ours
        && let Ok(commit) = command("git").args(git).output().await
        && commit.status.success()
    {
        bench
            .arg("--commit")
            .arg(String::from_utf8(commit.stdout)?.trim());
    }
    let code = status(bench).await?.code().context("the bench was killed")?;
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

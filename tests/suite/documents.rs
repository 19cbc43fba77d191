//! The documents say what is there.

use std::path::{Path, PathBuf};

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

#[test]
fn every_guarantee_names_tests_that_exist() -> Result<()> {
    let page = read("ARCHITECTURE.md")?;
    let (_, rest) = page
        .split_once("## The guarantees, and the tests that hold them")
        .context("no table of guarantees in ARCHITECTURE.md")?;
    let rows = rest.lines().skip_while(|line| !line.starts_with("| 1 |"));
    let rows: Vec<&str> = rows.take_while(|line| line.starts_with('|')).collect();
    ensure!(rows.len() == 9, "{} guarantees", rows.len());
    let mut tests = vec![];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    collect_tests(&root.join("tests/suite"), "", &mut tests)?;
    for krate in std::fs::read_dir(root.join("crates"))? {
        let krate = krate?.path();
        for part in ["src", "tests"] {
            collect_tests(&krate.join(part), "", &mut tests)?;
        }
    }
    ensure!(tests.len() > 500, "only {} tests found", tests.len());
    for row in rows {
        let column = row.split('|').nth(3).context("no third column")?;
        let names: Vec<&str> = column.split('`').skip(1).step_by(2).collect();
        ensure!(!names.is_empty(), "no test: {row}");
        for name in names {
            ensure!(
                tests.iter().any(|test| test.contains(name)),
                "there is no test `{name}`, which ARCHITECTURE.md names: {row}"
            );
        }
    }
    Ok(())
}

/// The tests of the sources in a directory, with their modules as the files lie: `faults::crash::…`. Tests that a macro
/// makes of names are found by those names.
fn collect_tests(dir: &Path, module: &str, found: &mut Vec<String>) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default();
        let inner = match stem {
            "mod" | "lib" | "main" => module.to_owned(),
            stem => format!("{module}{stem}::"),
        };
        if path.is_dir() {
            collect_tests(&path, &inner, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path)?;
            let has_tests = source.contains("#[test]")
                || source.contains("#[tokio::test]")
                || source.contains("_conformance!(");
            for line in source.lines().filter(|_| has_tests) {
                found.extend(test_names(line.trim()).map(|name| format!("{inner}{name}")));
            }
        }
    }
    Ok(())
}

/// The names in a line that may be those of tests: of a function, or what a macro makes functions of.
fn test_names(line: &str) -> impl Iterator<Item = &str> {
    let function = line
        .strip_prefix("async fn ")
        .or_else(|| line.strip_prefix("fn "));
    let made = line.split_once("=> ").map(|(_, names)| names);
    let conformance = line.contains("_conformance!(").then_some("all");
    let words = function
        .map(|rest| rest.split('(').next().unwrap_or(rest))
        .or(made)
        .or(conformance);
    words
        .into_iter()
        .flat_map(|words| words.split([',', ';', ' ']))
        .filter(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
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

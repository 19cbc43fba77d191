//! `cargo xtask bench --instructions`: counts the instructions of the hot functions and compares with what is committed.
//!
//! The counts hardly depend on what else the machine does, so that a few per cent show. They do depend on the compiler
//! and on Valgrind, which is why the file names both.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use postrider_testkit::services::target_dir;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::install::need;
use crate::shell::{cargo, command, must, output, root};

/// What is committed.
const FILE: &str = "crates/bench/instructions.toml";
/// By how much a count may be above the committed one.
const PERCENT_MAX: u64 = 5;
const RENEW: &str = "cargo xtask bench --instructions --renew";
/// How the file begins.
const HEAD: &str = "\
# Instructions of the hot functions (`benches/instructions.rs`), as Callgrind counts the second run of each.
# `cargo xtask bench --instructions` compares with them; with `--renew` it writes them.
#
# Valgrind shows the program a processor with AVX2 but without SHA extensions and AVX-512, so `sign` counts SHA-256 in
# software, which is nearly all of it: a delivery pays fewer instructions on a processor that has the extensions.

";

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Counts {
    compiler: String,
    valgrind: String,
    /// By function and case.
    instructions: BTreeMap<String, u64>,
}

/// Counts and compares, or with `renew` writes the file; the exit code.
pub(crate) async fn run(renew: bool) -> Result<u8> {
    need("valgrind", &["valgrind"]).await?;
    let counted = count().await?;
    let file = root().join(FILE);
    if renew {
        std::fs::write(&file, format!("{HEAD}{}", toml::to_string(&counted)?))
            .with_context(|| format!("cannot write {FILE}"))?;
        eprintln!("xtask: {FILE} is written");
        return Ok(0);
    }
    let text = std::fs::read_to_string(&file).with_context(|| format!("no {FILE}; `{RENEW}` writes it"))?;
    let committed: Counts = toml::from_str(&text).with_context(|| format!("cannot read {FILE}"))?;
    let (report, fine) = compare(&counted, &committed);
    eprint!("{report}");
    Ok(u8::from(!fine))
}

async fn count() -> Result<Counts> {
    let mut bench = cargo(&["bench", "-p", "postrider-bench", "--bench", "instructions"]);
    bench.args(["--", "--output-format=json"]);
    bench.env("GUNGRAUN_RUNNER", runner().await?);
    let printed = output(bench).await?;
    let version = async |program: &str| -> Result<String> {
        let mut ask = command(program);
        ask.arg("--version");
        Ok(output(ask).await?.trim().to_owned())
    };
    Ok(Counts {
        compiler: format!("{} on {}", version("rustc").await?, std::env::consts::ARCH),
        valgrind: version("valgrind").await?,
        instructions: parse(&printed)?,
    })
}

/// The program that the benches start, installed if it is missing; of the library's version, which it insists on.
async fn runner() -> Result<PathBuf> {
    let tools = target_dir().join("tools");
    let version = locked("gungraun")?;
    let mut install = cargo(&["install", "--quiet", "--locked", "gungraun-runner"]);
    install
        .arg(format!("--version={version}"))
        .arg("--root")
        .arg(&tools);
    must(install).await?;
    Ok(tools.join("bin/gungraun-runner"))
}

/// The version of a dependency.
fn locked(name: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
    }
    let lock: Lock = toml::from_str(&std::fs::read_to_string(root().join("Cargo.lock"))?)?;
    let package = lock.package.into_iter().find(|package| package.name == name);
    Ok(package
        .with_context(|| format!("{name} is not in Cargo.lock"))?
        .version)
}

/// Instructions by function and case, from the runner's summaries: a JSON object a line.
fn parse(printed: &str) -> Result<BTreeMap<String, u64>> {
    let one = |line: &str| {
        let summary: Value = serde_json::from_str(line).context("a summary is not JSON")?;
        let text = |name: &str| summary.get(name).and_then(Value::as_str);
        let name = text("function_name").zip(text("id"));
        let (function, case) = name.context("a summary without the name of its function")?;
        let count = summary.pointer("/profiles/0/data/total/metrics/Ir/values/new");
        let count = count.and_then(Value::as_u64);
        let count = count.with_context(|| format!("{function} has no count of instructions"))?;
        Ok((format!("{function}::{case}"), count))
    };
    printed
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(one)
        .collect()
}

/// A table and what to do, and whether all is as committed or better.
fn compare(counted: &Counts, committed: &Counts) -> (String, bool) {
    let mut text = format!("{:<32} {:>10} {:>10} {:>8}\n", "", "counted", "committed", "%");
    let mut wrong = Vec::new();
    for (name, &now) in &counted.instructions {
        let before = committed.instructions.get(name).copied();
        let shown = before.map_or("-".into(), |before| before.to_string());
        let percent = before.map_or("-".into(), |before| {
            format!("{:+.1}", 100.0 * (now as f64 / before as f64 - 1.0))
        });
        let _ = writeln!(text, "{name:<32} {now:>10} {shown:>10} {percent:>8}");
        match before {
            None => wrong.push(format!("{name} is not in the file")),
            Some(before) if now * 100 > before * (100 + PERCENT_MAX) => {
                wrong.push(format!("{name} takes over {PERCENT_MAX} % more than committed"));
            }
            Some(_) => {}
        }
    }
    let gone = committed.instructions.keys();
    let gone = gone.filter(|name| !counted.instructions.contains_key(*name));
    wrong.extend(gone.map(|name| format!("{name} is in the file only")));
    for (ours, theirs) in [
        (&counted.compiler, &committed.compiler),
        (&counted.valgrind, &committed.valgrind),
    ] {
        if ours != theirs {
            let _ = writeln!(
                text,
                "counted with {ours}, committed with {theirs}: that makes a difference"
            );
        }
    }
    for line in &wrong {
        let _ = writeln!(text, "{line}");
    }
    if !wrong.is_empty() {
        let _ = writeln!(text, "if that is meant, `{RENEW}` writes {FILE}");
    }
    (text, wrong.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(instructions: &[(&str, u64)]) -> Counts {
        Counts {
            compiler: "rustc 1".into(),
            valgrind: "valgrind-3".into(),
            instructions: instructions
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect(),
        }
    }

    #[test]
    fn more_than_five_per_cent_fails_and_is_named() {
        let committed = counts(&[("sign::kib", 1_000), ("gcra::one", 2_000)]);
        let (text, fine) = compare(&counts(&[("sign::kib", 1_050), ("gcra::one", 500)]), &committed);
        assert!(fine, "{text}");
        let (text, fine) = compare(&counts(&[("sign::kib", 1_051), ("gcra::one", 2_000)]), &committed);
        assert!(!fine);
        assert!(text.contains("sign::kib takes over 5 % more"), "{text}");
        assert!(!text.contains("gcra::one takes"), "{text}");
        assert!(text.contains(RENEW), "{text}");
    }

    #[test]
    fn what_is_on_one_side_only_fails() {
        let (one, two) = (counts(&[("a::b", 10)]), counts(&[("a::b", 10), ("c::d", 10)]));
        let (text, fine) = compare(&one, &two);
        assert!(!fine && text.contains("c::d is in the file only"), "{text}");
        let (text, fine) = compare(&two, &one);
        assert!(!fine && text.contains("c::d is not in the file"), "{text}");
    }

    #[test]
    fn another_compiler_is_told() {
        let committed = counts(&[("a::b", 10)]);
        let counted = Counts {
            compiler: "rustc 2".into(),
            ..counts(&[("a::b", 10)])
        };
        let (text, fine) = compare(&counted, &committed);
        assert!(fine && text.contains("counted with rustc 2"), "{text}");
    }

    #[test]
    fn a_summary_gives_name_and_count() {
        let line = r#"{"function_name":"sign","id":"kib","profiles":[{"data":{"total":{"metrics":{"Ir":{"values":{"new":7,"old":9}}}}}}]}"#;
        let parsed = parse(&format!("a line of other text\n{line}\n")).unwrap();
        assert_eq!(parsed, BTreeMap::from([("sign::kib".to_owned(), 7)]));
        assert!(parse(r#"{"function_name":"sign","id":"kib","profiles":[]}"#).is_err());
    }

    #[test]
    fn the_committed_file_can_be_read_and_is_what_would_be_written() {
        let text = std::fs::read_to_string(root().join(FILE)).unwrap();
        let committed: Counts = toml::from_str(&text).unwrap();
        assert_eq!(text, format!("{HEAD}{}", toml::to_string(&committed).unwrap()));
    }

    #[test]
    fn the_library_s_version_is_locked() {
        assert!(locked("gungraun").unwrap().starts_with("0."));
        assert!(locked("no-such-crate").is_err());
    }
}

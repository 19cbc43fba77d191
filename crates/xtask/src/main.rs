//! Developer commands: `cargo xtask test` runs all tests with everything that they need, `cargo xtask bench` measures.
#![expect(clippy::print_stderr, reason = "a developer watches what it does")]

mod bench;
mod install;
mod instructions;
mod sdk;
mod servers;
mod shell;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Postrider's developer commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings up RabbitMQ, Redis, Postgres and the public SDKs, runs every test, and stops what it started.
    ///
    /// A server named by POSTRIDER_TEST_AMQP_URL, POSTRIDER_TEST_REDIS_URL or POSTRIDER_TEST_POSTGRES_URL is used as it
    /// is. Otherwise private ones are started from installed binaries; as root on Debian, missing packages are
    /// installed; failing that, `docker compose` is used.
    Test {
        /// Passed on to the test runner, as in `cargo xtask test -- -E 'test(faults::)'`. With filters, the
        /// documentation's examples are not run.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        filters: Vec<String>,
    },
    /// Measures Postrider against the bare loop, with release builds and real servers; see docs/performance.md.
    Bench {
        /// Counts the instructions of the hot functions instead, under Valgrind, and fails when one takes over 5 % more
        /// than `crates/bench/instructions.toml` says. Installs what it needs.
        #[arg(long)]
        instructions: bool,
        /// Writes the counts into that file.
        #[arg(long, requires = "instructions")]
        renew: bool,
        /// Passed on to the bench, as in `cargo xtask bench --quick`; `cargo xtask bench -- --help` lists what there is.
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            conflicts_with = "instructions"
        )]
        options: Vec<String>,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Test { filters } => test::run(&filters).await,
        Command::Bench {
            instructions: true,
            renew,
            ..
        } => instructions::run(renew).await,
        Command::Bench { options, .. } => bench::run(&options).await,
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(args: &[&str]) -> Option<(bool, bool, Vec<String>)> {
        let args = ["cargo xtask", "bench"].iter().chain(args);
        match Cli::try_parse_from(args).ok()?.command {
            Command::Bench {
                instructions,
                renew,
                options,
            } => Some((instructions, renew, options)),
            Command::Test { .. } => None,
        }
    }

    #[test]
    fn the_bench_s_own_options_are_passed_on() {
        let options = ["--only", "latency", "--rounds=5"];
        assert_eq!(
            bench(&options),
            Some((false, false, options.map(Into::into).into()))
        );
        assert_eq!(bench(&["--quick"]), Some((false, false, vec!["--quick".into()])));
    }

    #[test]
    fn instructions_are_counted_alone() {
        assert_eq!(bench(&["--instructions"]), Some((true, false, vec![])));
        assert_eq!(bench(&["--instructions", "--renew"]), Some((true, true, vec![])));
        assert_eq!(bench(&["--renew"]), None);
        assert_eq!(bench(&["--instructions", "--quick"]), None);
    }
}

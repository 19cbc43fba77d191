//! Measures Postrider against a floor, on one machine, in one run.
//!
//! Cast: the *generator* makes load, the *receiver* is all endpoints, the *floors* are the least that a service on RabbitMQ
//! can do, *subjects* are what is measured, the *lab* holds the services and starts everything, and a *scenario* puts load on
//! subjects in turn and compares them round by round. Each is a process of its own (this program again, with a hidden
//! sub-command), so that CPU time can be told apart. Ratios are the result; absolute figures belong to the machine.
//!
//! `docs/performance.md` says how to run it and how to read it.

mod clock;
mod disk;
mod figures;
mod floor;
mod generate;
mod http_client;
mod lab;
mod load;
mod payload;
mod process;
mod receive;
mod record;
mod report;
mod run;
mod scenario;
mod services;
mod subject;
mod usage;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The same allocator as Postrider's, so that the floors have no other.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(about = "Measures Postrider against a floor, on one machine, in one run")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs scenarios and reports.
    Run(run::Options),
    /// Measures what the store costs alone: batches of records straight into its adapters.
    Record(record::Options),
    #[command(hide = true)]
    FloorGateway(floor::gateway::Options),
    #[command(hide = true)]
    FloorWorker(floor::worker::Options),
    #[command(hide = true)]
    Receive(receive::Options),
    #[command(hide = true)]
    Generate(generate::Options),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let floor = matches!(cli.command, Command::FloorGateway(_) | Command::FloorWorker(_));
    // The floors get two threads, as a service would; the others must not take more than one core.
    let runtime = if floor {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
    } else {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
    };
    runtime.block_on(async {
        match cli.command {
            Command::Run(options) => run::run(options).await,
            Command::Record(options) => record::run(options).await,
            Command::FloorGateway(options) => floor::gateway::run(options).await,
            Command::FloorWorker(options) => floor::worker::run(options).await,
            Command::Receive(options) => receive::run(options).await,
            Command::Generate(options) => generate::run(options).await,
        }
    })
}

//! `postrider`: webhook delivery. One binary; `serve` runs all of it, or some of its roles.

mod api_server;
mod check_config;
mod cli;
mod dependencies;
mod healthcheck;
mod keys;
mod logging;
#[cfg(test)]
mod metrics_page;
mod migrate;
mod open_files;
mod out;
mod parts;
mod poison;
mod quickstart;
mod relocate;
mod schema;
mod serve;
mod shutdown;
mod sink;
mod sole;
mod standby;
mod status;
mod top;
mod traces;

use std::process::ExitCode;

use clap::Parser as _;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    // One TLS provider in the whole process; an error means that it is there already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("the runtime cannot be started")),
    };
    match runtime.block_on(cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<out::Unread>() => ExitCode::from(out::UNREAD_STATUS),
        Err(error) => fail(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a command that failed")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("postrider: {error:#}");
    ExitCode::FAILURE
}

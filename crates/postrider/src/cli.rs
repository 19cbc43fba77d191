//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use postrider_config::{Config, Loaded, Overrides, Roles};

/// Webhook delivery: events in, signed HTTP POSTs out, at least once, with a record of every attempt.
#[derive(Debug, Parser)]
#[command(version, about, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Start here:
  postrider serve                         everything in one process, on an embedded store
  postrider sink                          a receiver that verifies and prints what it gets
  postrider check-config                  what is configured, and where each value comes from

Scaled out, with POSTRIDER_BROKER__URL, POSTRIDER_REDIS__URL, POSTRIDER_STORE__URL, POSTRIDER_AUTH__ADMIN_KEY and
POSTRIDER_SECRETS__KEY set in every process:
  postrider migrate
  postrider serve --role gateway
  postrider serve --role worker
  postrider serve --role ledger
Each listens (`--listen`), for health checks at least; on one machine each needs a port of its own.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run Postrider: all of it, or the roles that are named.
    Serve(ServeArgs),
    /// Bring the store's schema up to date. Safe to run again, and on Postgres while others run.
    Migrate(ConfigArgs),
    /// Move an embedded store to the Postgres of the configuration, whole or not at all.
    Move {
        #[command(flatten)]
        config: ConfigArgs,
        /// Data directory of the embedded Postrider, which must be stopped.
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
    },
    /// Make, list and revoke API keys; seal stored values anew after a change of the secrets key.
    Key {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(subcommand)]
        command: crate::keys::Command,
    },
    /// Print the effective configuration with the source of each value. Secrets are hidden.
    CheckConfig(CheckArgs),
    /// Tell how everything stands: services, roles, queues, what waits and for whom, what was parked.
    Status {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        options: crate::status::Options,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// The status, live in the terminal; q quits.
    Top {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        options: crate::status::Options,
    },
    /// List, replay and drop what could not be handled and was parked.
    Poison {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(subcommand)]
        command: crate::poison::Command,
    },
    /// Ask a running process whether it is ready; exit 0 when it is. Made for container health checks.
    Healthcheck(crate::healthcheck::Options),
    /// Run a receiver that verifies signatures and prints what it gets.
    Sink(crate::sink::Options),
}

/// Where the configuration is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArgs {
    /// TOML file. Environment variables and options win over it.
    #[arg(long, value_name = "FILE", env = "POSTRIDER_CONFIG")]
    config: Option<PathBuf>,
    /// Directory of the embedded store and of its keys.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Roles of this process: gateway, worker, ledger; several with commas or by repeating the option. All when absent.
    #[arg(long = "role", value_name = "ROLES", env = "POSTRIDER_ROLE")]
    roles: Vec<Roles>,
    /// Address of the HTTP API and of the health checks.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Check for a process of these roles. All when absent.
    #[arg(long = "role", value_name = "ROLES", env = "POSTRIDER_ROLE")]
    roles: Vec<Roles>,
    /// Print every key with its meaning, default and limits instead, as Markdown.
    #[arg(long)]
    reference: bool,
}

impl Cli {
    /// Runs the command.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(args) => {
                let loaded = args.config.load(args.listen)?;
                crate::serve::run(loaded.config, roles(args.roles)).await
            }
            Command::Migrate(args) => crate::migrate::run(args.values()?).await,
            Command::Move { config, from } => crate::relocate::run(config.values()?, &from).await,
            Command::Key { config, command } => crate::keys::run(config.values()?, command).await,
            Command::CheckConfig(args) if args.reference => crate::check_config::print_reference(),
            Command::CheckConfig(args) => {
                crate::check_config::run(&args.config.load(None)?, roles(args.roles))
            }
            Command::Status {
                config,
                options,
                json,
            } => crate::status::run(config.values()?, options, json).await,
            Command::Top { config, options } => crate::top::run(config.values()?, options).await,
            Command::Poison { config, command } => crate::poison::run(config.values()?, command).await,
            Command::Healthcheck(options) => crate::healthcheck::run(options).await,
            Command::Sink(options) => crate::sink::run(options).await,
        }
    }
}

fn roles(named: Vec<Roles>) -> Roles {
    if named.is_empty() {
        Roles::ALL
    } else {
        Roles::union(named)
    }
}

impl ConfigArgs {
    /// The configuration of a command that does not serve, each of its values in order.
    fn values(&self) -> anyhow::Result<Config> {
        let config = self.load(None)?.config;
        config.validate_values()?;
        Ok(config)
    }

    /// Reads the configuration; what the command line says wins.
    fn load(&self, listen: Option<SocketAddr>) -> anyhow::Result<Loaded> {
        let mut overrides = Overrides::default();
        if let Some(listen) = listen {
            overrides = overrides.set("listen", listen.to_string(), "--listen");
        }
        if let Some(data_dir) = &self.data_dir {
            let data_dir = data_dir.to_str().context("--data-dir is not valid UTF-8")?;
            overrides = overrides.set("data_dir", data_dir, "--data-dir");
        }
        Ok(Config::load(self.config.as_deref(), overrides)?)
    }
}

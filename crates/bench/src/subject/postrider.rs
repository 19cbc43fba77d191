//! Postrider scaled out, on RabbitMQ, Redis and Postgres, with everything on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use postrider_testkit::services::unique_name;

use super::tenants::{Made, Tenants};
use super::{Record, Target};
use crate::generate::plan::Route;
use crate::http_client::Http;
use crate::lab::{Lab, START_LIMIT, loopback};
use crate::process::Process;
use crate::services::delete_queues;

/// An administrator's key for a deployment that lives for minutes on loopback.
const KEY: &str = "prk_bench-bench-bench-bench-bench-bench-bench-w";
/// A key for payloads that are made up.
const SECRETS_KEY: &str = "psk_YmVuY2gtYmVuY2gtYmVuY2gtYmVuY2gtYmVuY2gtYmU=";
/// The default number of delivery queues.
const SHARDS: u16 = 4;
const MIGRATE_LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Postrider {
    pub(crate) http: Http,
    gateways: Vec<SocketAddr>,
    database: String,
    /// What the names of its queues start with.
    prefix: String,
    broker: String,
    processes: Vec<Process>,
    env: Vec<(String, String)>,
}

impl Postrider {
    /// Starts it on a new database, with nobody in it: a gateway, a ledger and so many workers.
    pub(crate) async fn start(lab: &Lab, workers: usize) -> Result<Self> {
        Self::start_with(lab, workers, &[]).await
    }

    /// Starts it with further settings, by environment variable.
    pub(crate) async fn start_with(lab: &Lab, workers: usize, settings: &[(&str, &str)]) -> Result<Self> {
        let prefix = unique_name("bench");
        let database = lab.services.postgres.database(&prefix).await?;
        let mut env = environment(lab, &database, &prefix);
        env.extend(
            settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        let migrate = lab.start_postrider("migrate", &["migrate".into()], env.clone())?;
        migrate.output(MIGRATE_LIMIT).await?;
        let mut new = Self {
            http: Http::new(String::new(), None),
            gateways: Vec::new(),
            database,
            prefix,
            broker: lab.services.rabbit.url(),
            processes: Vec::new(),
            env,
        };
        new.add(lab, "ledger").await?;
        for _ in 0..workers {
            new.add(lab, "worker").await?;
        }
        new.add(lab, "gateway").await?;
        Ok(new)
    }

    /// Adds a process; the others stay as they are.
    pub(crate) async fn add(&mut self, lab: &Lab, role: &str) -> Result<()> {
        let address = loopback()?;
        let args = [
            "serve".into(),
            format!("--role={role}"),
            format!("--listen={address}"),
        ];
        let mut process = lab.start_postrider(role, &args, self.env.clone())?;
        if role == "gateway" {
            process.listening(address, START_LIMIT).await?;
            ready(&mut process, address).await?;
            self.http = Http::new(format!("http://{address}"), Some(KEY.to_owned()));
            self.gateways.push(address);
        }
        self.processes.push(process);
        Ok(())
    }

    /// Makes applications and endpoints, and says how to send to them.
    pub(crate) async fn target(&self, tenants: &Tenants, url: impl Fn(usize) -> String) -> Result<Target> {
        let made = tenants.make(&self.http, url).await?;
        Ok(self.target_of(tenants, &made))
    }

    /// How to send to applications and endpoints that exist.
    pub(crate) fn target_of(&self, tenants: &Tenants, made: &Made) -> Target {
        Target {
            name: "postrider".into(),
            processes: ["gateway", "worker", "ledger"].map(Into::into).into(),
            addresses: self.gateways.clone(),
            route: Route::Postrider {
                apps: made.apps.clone(),
                key: KEY.to_owned(),
                every_type: tenants.one_type_each && tenants.endpoints > 1,
                run: unique_name("r"),
            },
            fan_out: tenants.fan_out(),
            record: Record::Postgres {
                url: self.database.clone(),
            },
        }
    }

    /// Ends it and deletes what it kept, so that what was measured costs nothing later.
    pub(crate) async fn stop(self, lab: &Lab) -> Result<()> {
        // The gateways first: what they accepted can still be delivered.
        for process in self.processes.into_iter().rev() {
            process.stop().await?;
        }
        let shards = (0..SHARDS).flat_map(|shard| [format!("deliver.{shard}"), format!("retry.{shard}")]);
        let queues = shards.chain(["journal".into(), "stray".into()]);
        let queues: Vec<String> = queues
            .map(|queue| format!("{}.v1.{queue}", self.prefix))
            .collect();
        delete_queues(&self.broker, &queues).await?;
        lab.services.redis.flush().await?;
        // The database has its name from the prefix.
        lab.services.postgres.drop_database(&self.prefix).await
    }
}

/// Waits until it says that it is ready.
pub(super) async fn ready(process: &mut Process, address: SocketAddr) -> Result<()> {
    let http = Http::new(format!("http://{address}"), None);
    postrider_testkit::wait::wait_for("postrider to be ready", START_LIMIT, async || {
        process.check()?;
        Ok(match http.ask(http::Method::GET, "/health/ready", None).await {
            Ok(_) => postrider_testkit::wait::Poll::Ready(()),
            Err(error) => postrider_testkit::wait::Poll::NotYet(format!("{error:#}")),
        })
    })
    .await
}

fn environment(lab: &Lab, database: &str, prefix: &str) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = [
        ("POSTRIDER_BROKER__URL", lab.services.rabbit.url().as_str()),
        ("POSTRIDER_REDIS__URL", lab.services.redis.url().as_str()),
        ("POSTRIDER_STORE__URL", database),
        ("POSTRIDER_BROKER__PREFIX", prefix),
        ("POSTRIDER_REDIS__PREFIX", prefix),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    env.extend(common_environment(lab.receiver.tls_ca.as_ref()));
    env
}

/// What both set-ups need: keys, and leave to deliver to this machine.
pub(super) fn common_environment(tls_ca: Option<&PathBuf>) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = [
        ("POSTRIDER_AUTH__ADMIN_KEY", KEY),
        ("POSTRIDER_SECRETS__KEY", SECRETS_KEY),
        ("POSTRIDER_EGRESS__ALLOW", "127.0.0.0/8"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    env.extend(tls_ca.map(|path| {
        (
            "POSTRIDER_EGRESS__EXTRA_ROOTS".to_owned(),
            path.display().to_string(),
        )
    }));
    env
}

/// The administrator's key.
pub(super) fn key() -> &'static str {
    KEY
}

//! A running Postrider: embedded in one process, or scaled out over RabbitMQ, Redis and Postgres.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use postrider_secrets::Keyring;
use postrider_store::SharedStore;
use postrider_store_postgres::PostgresStore;
use postrider_store_sqlite::SqliteStore;
use postrider_testkit::process::{Builder, Postrider};
use postrider_testkit::services::{self, PostgresDatabase, unique_name};

use crate::api::Api;

/// An admin key and an encryption key for tests, not secret.
pub(crate) const ADMIN_KEY: &str = "prk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
pub(crate) const SECRETS_KEY: &str = "psk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// How long anything that should happen at once may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Where a scaled-out stack keeps what it shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) amqp: String,
    pub(crate) redis: String,
    pub(crate) postgres: String,
    prefix: String,
    _database: Option<PostgresDatabase>,
}

impl Shared {
    /// The machine's shared servers, with a namespace of its own in each.
    pub(crate) async fn on_shared_services() -> Result<Self> {
        let database = PostgresDatabase::create().await?;
        Ok(Self {
            amqp: services::rabbitmq().await?,
            redis: services::redis().await?,
            postgres: database.url().to_owned(),
            prefix: unique_name("pr"),
            _database: Some(database),
        })
    }

    /// Servers of the test's own, which it may break.
    pub(crate) fn on(amqp: String, redis: String, postgres: String) -> Self {
        Self {
            amqp,
            redis,
            postgres,
            prefix: unique_name("pr"),
            _database: None,
        }
    }

    /// A process of these roles.
    pub(crate) fn builder(&self, roles: &str) -> Builder {
        let settings = self.settings().into_iter();
        settings.fold(Postrider::builder().role(roles), |builder, (name, value)| {
            builder.env(name, value)
        })
    }

    /// What every process of the stack has in its environment.
    pub(crate) fn settings(&self) -> [(&'static str, &str); 7] {
        [
            ("POSTRIDER_BROKER__URL", &self.amqp),
            ("POSTRIDER_BROKER__PREFIX", &self.prefix),
            ("POSTRIDER_REDIS__URL", &self.redis),
            ("POSTRIDER_REDIS__PREFIX", &self.prefix),
            ("POSTRIDER_STORE__URL", &self.postgres),
            ("POSTRIDER_AUTH__ADMIN_KEY", ADMIN_KEY),
            ("POSTRIDER_SECRETS__KEY", SECRETS_KEY),
        ]
    }

    /// The store, beside the processes that use it.
    pub(crate) fn store(&self) -> Result<SharedStore> {
        let keyring = Arc::new(Keyring::parse(SECRETS_KEY)?);
        let settings = postrider_store_postgres::Settings::new(self.postgres.clone().into(), keyring);
        Ok(PostgresStore::connect(settings)?)
    }

    /// The name of a queue, as the broker knows it.
    pub(crate) fn queue(&self, name: &str) -> String {
        format!("{}.v1.{name}", self.prefix)
    }

    /// Brings the schema up to date.
    pub(crate) async fn migrate(&self) -> Result<()> {
        self.migrate_by(&postrider_testkit::process::binary()?).await
    }

    /// Brings the schema up to date for this binary.
    pub(crate) async fn migrate_by(&self, program: &Path) -> Result<()> {
        let mut migrate = tokio::process::Command::new(program);
        // The tests' own variables are no settings, which it would refuse.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("POSTRIDER_"))
        {
            migrate.env_remove(name);
        }
        let status = migrate
            .arg("migrate")
            .env("POSTRIDER_STORE__URL", &self.postgres)
            .env("POSTRIDER_SECRETS__KEY", SECRETS_KEY)
            .status()
            .await
            .context("`postrider migrate` cannot be run")?;
        anyhow::ensure!(status.success(), "`postrider migrate` failed: {status}");
        Ok(())
    }
}

/// The store in the data directory of an embedded process, beside it or while it is down.
pub(crate) fn embedded_store(data: &Path) -> Result<SharedStore> {
    let keyring = Keyring::load_or_create(&data.join("secrets.key"))?;
    let settings = postrider_store_sqlite::Settings::new(Arc::new(keyring));
    Ok(SqliteStore::open(data.join("postrider.db"), settings)?)
}

/// How many processes of each role.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) gateways: usize,
    pub(crate) workers: usize,
    pub(crate) ledgers: usize,
}

impl Shape {
    pub(crate) const SMALL: Self = Self {
        gateways: 1,
        workers: 1,
        ledgers: 1,
    };
}

/// The processes of a test.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) gateways: Vec<Postrider>,
    pub(crate) workers: Vec<Postrider>,
    pub(crate) ledgers: Vec<Postrider>,
    pub(crate) shared: Option<Shared>,
    key: String,
}

impl Stack {
    /// One process that is everything.
    pub(crate) async fn embedded() -> Result<Self> {
        Self::embedded_with(|builder| builder).await
    }

    /// One process that is everything, with settings.
    pub(crate) async fn embedded_with(configure: impl Fn(Builder) -> Builder) -> Result<Self> {
        let process = configure(Postrider::builder()).start().await?;
        let key = process.admin_key().await?;
        Ok(Self {
            gateways: vec![process],
            workers: vec![],
            ledgers: vec![],
            shared: None,
            key,
        })
    }

    /// Separate processes on the machine's shared servers.
    pub(crate) async fn scaled(shape: Shape) -> Result<Self> {
        Self::scaled_on(Shared::on_shared_services().await?, shape, |builder| builder).await
    }

    /// Separate processes on these servers, with settings.
    pub(crate) async fn scaled_on(
        shared: Shared,
        shape: Shape,
        configure: impl Fn(Builder) -> Builder,
    ) -> Result<Self> {
        shared.migrate().await?;
        Self::start_on(shared, shape, configure).await
    }

    /// Separate processes on these servers, whose schema is there already.
    pub(crate) async fn start_on(
        shared: Shared,
        shape: Shape,
        configure: impl Fn(Builder) -> Builder,
    ) -> Result<Self> {
        let spawn = |role: &str, count: usize| -> Result<Vec<Postrider>> {
            (0..count)
                .map(|_| configure(shared.builder(role)).spawn())
                .collect()
        };
        let mut stack = Self {
            gateways: spawn("gateway", shape.gateways)?,
            workers: spawn("worker", shape.workers)?,
            ledgers: spawn("ledger", shape.ledgers)?,
            shared: Some(shared),
            key: ADMIN_KEY.to_owned(),
        };
        for process in stack.processes_mut() {
            process.wait_ready().await?;
        }
        Ok(stack)
    }

    /// The API of the first gateway.
    pub(crate) fn api(&self) -> Api {
        self.api_of(0)
    }

    /// The API of one gateway.
    pub(crate) fn api_of(&self, gateway: usize) -> Api {
        Api::new(&self.gateways[gateway].url(), &self.key)
    }

    /// The admin key.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn processes_mut(&mut self) -> impl Iterator<Item = &mut Postrider> {
        self.gateways
            .iter_mut()
            .chain(&mut self.workers)
            .chain(&mut self.ledgers)
    }

    /// The process of a role; embedded, the one there is.
    pub(crate) fn of_role(&mut self, role: &str) -> &mut Postrider {
        if self.shared.is_none() {
            return &mut self.gateways[0];
        }
        match role {
            "gateway" => &mut self.gateways[0],
            "worker" => &mut self.workers[0],
            _ => &mut self.ledgers[0],
        }
    }
}

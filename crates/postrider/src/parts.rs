//! The parts that the roles lean on, made from the configuration: the store, the broker, the limits, the client.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use postrider_broker::{
    Broker, GatherSettings, InProcess, InProcessSettings, JobPublisher, JournalPublisher,
};
use postrider_broker_rabbitmq::Rabbit;
use postrider_config::{Config, StoreTarget};
use postrider_egress::Policy;
use postrider_limits::{BreakerSettings, Fallback, Limits as _, SharedLimits};
use postrider_limits_redis::RedisLimits;
use postrider_secrets::Keyring;
use postrider_store::SharedStore;
use postrider_store_postgres::PostgresStore;
use postrider_store_sqlite::SqliteStore;
use postrider_telemetry::Metrics;
use postrider_telemetry::labels::Service;
use secrecy::{ExposeSecret as _, SecretString};

/// Processes that share a limit while Redis is away, for the local share of it. Too many is slow, too few is rude.
const EXPECTED_PROCESSES: u32 = 4;

/// Everything that the roles share.
pub(crate) struct Parts {
    pub(crate) store: SharedStore,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) jobs: JobPublisher,
    pub(crate) journal: JournalPublisher,
    pub(crate) limits: SharedLimits,
    pub(crate) policy: Policy,
    pub(crate) metrics: Arc<Metrics>,
}

/// Makes the parts. Services that are away are connected to in the background.
pub(crate) async fn parts(
    config: &Config,
    store: SharedStore,
    metrics: Arc<Metrics>,
) -> anyhow::Result<Parts> {
    let broker = broker(config, &metrics)?;
    let gather = GatherSettings {
        max_items: config.broker.envelope_max_deliveries,
        max_bytes: config.broker.envelope_max_bytes.as_usize(),
        ..if broker.is_durable() {
            GatherSettings::default()
        } else {
            GatherSettings::in_process()
        }
    };
    let jobs = JobPublisher::with_metrics(broker.clone(), gather, config.broker.shards, metrics.clone());
    let journal = JournalPublisher::with_metrics(broker.clone(), gather, metrics.clone());
    let limits = limits(config, &metrics).await?;
    Ok(Parts {
        store,
        broker,
        jobs,
        journal,
        limits,
        policy: policy(config),
        metrics,
    })
}

/// The store: Postgres by its URL, not migrated, SQLite in the data directory otherwise, which is.
pub(crate) fn store(config: &Config) -> anyhow::Result<SharedStore> {
    open_store(config, true)
}

/// `serves`: of an embedded store, whether it is made and brought up to date.
fn open_store(config: &Config, serves: bool) -> anyhow::Result<SharedStore> {
    let keyring = Arc::new(keyring(config)?);
    let disable_after = config.delivery.disable_after.get();
    match config.store_target() {
        StoreTarget::Postgres(url) => {
            let url = SecretString::from(url.expose().to_owned());
            Ok(postgres(config, url, keyring)?)
        }
        StoreTarget::Sqlite(path) => {
            make_private_directory(path.parent().unwrap_or(Path::new(".")))?;
            let settings = postrider_store_sqlite::Settings {
                disable_after,
                serves,
                ..postrider_store_sqlite::Settings::new(keyring)
            };
            let store = SqliteStore::open(&path, settings)
                .with_context(|| format!("the embedded store {} cannot be opened", path.display()))?;
            Ok(store)
        }
    }
}

/// The store on Postgres, connected to when it is first used.
pub(crate) fn postgres(
    config: &Config,
    url: SecretString,
    keyring: Arc<Keyring>,
) -> anyhow::Result<Arc<PostgresStore>> {
    let settings = postrider_store_postgres::Settings {
        read_connections: config.store.read_connections,
        write_connections: config.store.write_connections,
        disable_after: config.delivery.disable_after.get(),
        ..postrider_store_postgres::Settings::new(url, keyring)
    };
    PostgresStore::connect(settings).context("the store cannot be used")
}

/// The store of a Postrider that was started before. A command that only looks must not make an empty one, nor change the
/// schema of one that an older Postrider serves.
pub(crate) fn existing_store(config: &Config) -> anyhow::Result<SharedStore> {
    if let StoreTarget::Sqlite(path) = config.store_target() {
        anyhow::ensure!(
            path.is_file(),
            "there is no store at {}; name the data directory with --data-dir, or the services of a scaled-out \
             Postrider in the environment",
            path.display()
        );
    }
    open_store(config, false)
}

/// The key of encryption at rest: from the environment, or made in the data directory at the first start.
pub(crate) fn keyring(config: &Config) -> anyhow::Result<Keyring> {
    match &config.secrets.key {
        Some(text) => Ok(Keyring::parse(text.expose_secret())?),
        None => {
            make_private_directory(&config.data_dir)?;
            Ok(Keyring::load_or_create(&config.data_dir.join("secrets.key"))?)
        }
    }
}

pub(crate) fn make_private_directory(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| {
            format!(
                "the directory {} cannot be made; choose another with --data-dir",
                path.display()
            )
        })
}

fn broker(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<Arc<dyn Broker>> {
    let settings = &config.broker;
    let Some(url) = &settings.url else {
        return Ok(InProcess::new(InProcessSettings {
            shards: settings.shards,
            ..InProcessSettings::default()
        }));
    };
    let ca_pem = match &settings.ca_file {
        Some(path) => Some(
            std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?,
        ),
        None => None,
    };
    let rabbit = Rabbit::connect(
        postrider_broker_rabbitmq::Settings {
            url: url.expose().to_owned(),
            ca_pem,
            prefix: settings.prefix.clone(),
            shards: settings.shards,
            publish_timeout: settings.publish_timeout.get(),
            publish_window: settings.publish_window,
            connect_timeout: settings.connect_timeout.get(),
            reconnect_max: settings.reconnect_max_delay.get(),
            ..postrider_broker_rabbitmq::Settings::default()
        },
        Some(metrics.clone()),
    )
    .context("broker.url cannot be used")?;
    Ok(rabbit)
}

async fn limits(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<SharedLimits> {
    let breaker = BreakerSettings {
        failures: config.delivery.breaker_failures,
        open_for: config.delivery.breaker_open.get(),
        open_for_max: config.delivery.breaker_open_max.get(),
    };
    let local = postrider_limits::InProcess::new(breaker);
    let Some(url) = &config.redis.url else {
        return Ok(Arc::new(local));
    };
    let shared = RedisLimits::connect(postrider_limits_redis::Settings {
        prefix: config.redis.prefix.clone(),
        timeout: config.redis.timeout.get(),
        breaker,
        ..postrider_limits_redis::Settings::new(url.expose().to_owned())
    })
    .await
    .context("redis.url cannot be used")?;
    let observed = metrics.clone();
    let fallback = Arc::new(Fallback::new(shared, local, EXPECTED_PROCESSES, move |what| {
        observed.limits_fallback(what);
    }));
    watch_degradation(&fallback, metrics);
    Ok(fallback)
}

/// Keeps the gauge of "limits are local now" up to date while anybody uses them.
fn watch_degradation(fallback: &Arc<Fallback>, metrics: &Arc<Metrics>) {
    let fallback = Arc::downgrade(fallback);
    let metrics = metrics.clone();
    tokio::spawn(async move {
        let mut was_degraded = false;
        while let Some(fallback) = fallback.upgrade() {
            if fallback.degraded() {
                // Somebody must ask, or a process with nothing to do would never learn that it is back. A call that writes: not
                // each server that answers takes writes.
                let _ = fallback.open_breakers().await;
            }
            let degraded = fallback.degraded();
            metrics.limits_degraded(degraded);
            if was_degraded && !degraded {
                metrics.reconnected(Service::Redis);
            }
            was_degraded = degraded;
            drop(fallback);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
}

fn policy(config: &Config) -> Policy {
    let policy = Policy::new(config.egress.allow.0.clone(), config.egress.https_only);
    match crate::quickstart::sink_exemption(config) {
        Some(sink) => policy.with_socket(sink),
        None => policy,
    }
}

/// The guarded client of the worker.
pub(crate) fn client(config: &Config, policy: &Policy) -> anyhow::Result<postrider_egress::Client> {
    let extra_roots_pem = match &config.egress.extra_roots {
        Some(path) => std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?,
        None => Vec::new(),
    };
    let settings = postrider_egress::Settings {
        connect_timeout: config.egress.connect_timeout.get(),
        idle_per_host_max: config.egress.pool_idle_per_host,
        idle_timeout: config.egress.idle_timeout.get(),
        extra_roots_pem,
        name_servers: config.egress.name_servers.clone(),
        ..postrider_egress::Settings::default()
    };
    postrider_egress::Client::new(settings, policy.clone()).context("the HTTP client cannot be made")
}

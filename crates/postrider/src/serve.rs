//! `postrider serve`: wires the roles of this process together, runs them until a signal, and stops them in order.
//!
//! Order of the stop: the gateway's listener (requests under way are answered) and the worker, side by side: what is
//! accepted meanwhile has a row in the store, and goes out after the next start. Then the ledger, which on the embedded
//! set-up records what both of them said; then broker and store.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use postrider_config::{Config, Role, Roles, StoreTarget};
use postrider_gateway::Gateway;
use postrider_model::RetrySchedule;
use postrider_store::SharedStore;
use postrider_telemetry::Metrics;
use postrider_telemetry::trace::Tracer;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api_server::ApiServer;
use crate::out::Unread;
use crate::parts::{self, Parts};
use crate::{dependencies, logging, open_files, quickstart, schema, shutdown, sole, standby, traces};

/// Connections to the metrics listener.
const METRICS_CONNECTIONS: usize = 32;

/// Runs the roles until SIGTERM or SIGINT.
pub(crate) async fn run(config: Config, roles: Roles) -> anyhow::Result<()> {
    config.validate(roles)?;
    logging::begin(&config)?;
    open_files::raise();
    let signalled = shutdown::signalled();

    let (connections_max, idle_timeout) = (config.server.connections_max, config.server.idle_timeout.get());
    let server = ApiServer::bind(config.listen, tls(&config), connections_max, idle_timeout).await?;
    let address = server.address()?;
    let _lock = sole::lock(&config)?;
    let store = parts::store(&config)?;
    prepare_schema(&config, &store).await?;

    let gateway_metrics = Arc::new(postrider_gateway::Metrics::default());
    let registered = gateway_metrics.clone();
    let metrics = Metrics::with(move |registry| registered.register(registry));
    let (tracer, exporting) = traces::start(&config, roles, &metrics)?;
    let parts = parts::parts(&config, store, metrics).await?;
    dependencies::watch(&parts);
    let running = Running::start(&config, roles, &parts, gateway_metrics, tracer, server).await?;
    tracing::info!(listen = %address, roles = %roles, "started");
    let ended = match greet(&config, roles, &parts.store, address).await {
        Ok(()) => tokio::select! {
            () = signalled => Ok(()),
            error = schema::unfit(&parts.store) => Err(error.into()),
        },
        Err(error) => Err(error),
    };
    tracing::info!("stopping");
    running.stop(&parts).await;
    if let Some(exporting) = exporting {
        exporting.finish().await;
    }
    ended
}

/// What a first start of the embedded set-up says.
async fn greet(
    config: &Config,
    roles: Roles,
    store: &SharedStore,
    address: SocketAddr,
) -> anyhow::Result<()> {
    if config.is_scaled_out() || !roles.is_all() {
        return Ok(());
    }
    match quickstart::greet(config, store, address).await {
        Err(error) if error.is::<Unread>() => {
            tracing::warn!("nobody reads the greeting; `postrider key create` makes a key");
            Ok(())
        }
        greeted => greeted,
    }
}

/// Embedded: brings the schema up to date. Scaled out: refuses another version; a database that is away is waited for
/// by the roles, which are not ready until they have read from it.
async fn prepare_schema(config: &Config, store: &SharedStore) -> anyhow::Result<()> {
    if let StoreTarget::Sqlite(_) = config.store_target() {
        store.migrate().await?;
        store.release_all_leases(true).await?;
        return Ok(());
    }
    Ok(schema::check(store).await?)
}

/// Certificate chain and key of all listeners.
fn tls(config: &Config) -> Option<(&Path, &Path)> {
    config
        .server
        .tls_cert
        .as_deref()
        .zip(config.server.tls_key.as_deref())
}

/// The roles at work.
struct Running {
    listener: Task,
    gateway: Option<Gateway>,
    metrics: Option<Task>,
    worker: Option<Task>,
    ledger: Option<Task>,
}

/// A task and what stops it.
struct Task {
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

impl Task {
    fn spawn<F: Future<Output = ()> + Send + 'static>(run: impl FnOnce(CancellationToken) -> F) -> Self {
        let stop = CancellationToken::new();
        Self {
            handle: tokio::spawn(run(stop.clone())),
            stop,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.handle.await {
            tracing::error!(%error, "a role did not end as it should");
        }
    }
}

impl Running {
    async fn start(
        config: &Config,
        roles: Roles,
        parts: &Parts,
        gateway_metrics: Arc<postrider_gateway::Metrics>,
        tracer: Option<Tracer>,
        server: ApiServer,
    ) -> anyhow::Result<Self> {
        // First what can fail: a role at work would take deliveries, and its sudden end count against them.
        let worker = if roles.contains(Role::Worker) {
            Some((
                worker_settings(config)?,
                worker_deps(config, parts, tracer.clone())?,
            ))
        } else {
            None
        };
        let metrics = match config.metrics.listen {
            Some(address) => {
                let idle_timeout = config.server.idle_timeout.get();
                let server = ApiServer::bind(address, tls(config), METRICS_CONNECTIONS, idle_timeout);
                Some(server.await.context("metrics.listen")?)
            }
            None => None,
        };
        let ledger = roles.contains(Role::Ledger).then(|| {
            let (settings, deps) = (ledger_settings(config), ledger_deps(parts));
            Task::spawn(|stop| postrider_ledger::run(settings, deps, stop))
        });
        let worker =
            worker.map(|(settings, deps)| Task::spawn(|stop| postrider_worker::run(settings, deps, stop)));
        let metrics = metrics.map(|server| {
            let router = standby::metrics_router(parts.metrics.clone());
            Task::spawn(|stop| server.run(router, stop))
        });
        let gateway = roles.contains(Role::Gateway).then(|| {
            Gateway::new(
                gateway_settings(config),
                gateway_deps(parts, gateway_metrics, tracer),
            )
        });
        let listener = Task::spawn(|stop| {
            let router = match &gateway {
                Some(gateway) => gateway.router(),
                None => standby::router(parts.store.clone(), parts.broker.clone(), stop.clone()),
            };
            server.run(router, stop)
        });
        Ok(Self {
            listener,
            gateway,
            metrics,
            worker,
            ledger,
        })
    }

    async fn stop(self, parts: &Parts) {
        let gateway = async {
            self.listener.stop().await;
            if let Some(gateway) = self.gateway {
                gateway.shutdown().await;
            }
        };
        let worker = async {
            if let Some(worker) = self.worker {
                worker.stop().await;
            }
        };
        tokio::join!(gateway, worker);
        for role in [self.ledger, self.metrics].into_iter().flatten() {
            role.stop().await;
        }
        parts.broker.close().await;
        if !parts.broker.is_durable() {
            // What is still leased did not die with this process, so no death counts against it.
            if let Err(error) = parts.store.release_all_leases(false).await {
                tracing::warn!(error = %error, "leases were not released");
            }
        }
        parts.store.close().await;
    }
}

fn gateway_settings(config: &Config) -> postrider_gateway::Settings {
    let (server, ingest) = (&config.server, &config.ingest);
    postrider_gateway::Settings {
        admin_key: config.auth.admin_key.clone(),
        shards: config.broker.shards,
        body_bytes_max: ingest.message_max_bytes.as_usize(),
        batch_bytes_max: ingest.batch_max_bytes.as_usize(),
        batch_messages_max: ingest.batch_max_messages,
        fan_out_max: ingest.fanout_max,
        endpoints_max: ingest.endpoints_max,
        throttle_rate: ingest.app_rate,
        request_timeout: server.request_timeout.get(),
        requests_max: server.requests_max,
        body_memory_max: server.body_memory_max.as_usize(),
        cache_bytes_max: server.cache_max_bytes.get(),
        journal_depth_max: ingest.journal_max_frames,
        record_wait: ingest.record_wait.get(),
        ..postrider_gateway::Settings::default()
    }
}

fn gateway_deps(
    parts: &Parts,
    metrics: Arc<postrider_gateway::Metrics>,
    tracer: Option<Tracer>,
) -> postrider_gateway::Deps {
    postrider_gateway::Deps {
        store: parts.store.clone(),
        limits: parts.limits.clone(),
        broker: parts.broker.clone(),
        jobs: parts.jobs.clone(),
        journal: parts.journal.clone(),
        policy: parts.policy.clone(),
        metrics,
        telemetry: parts.metrics.clone(),
        tracer,
    }
}

fn worker_settings(config: &Config) -> anyhow::Result<postrider_worker::Settings> {
    let delivery = &config.delivery;
    let schedule = delivery.retry_schedule.iter().map(|delay| delay.get()).collect();
    Ok(postrider_worker::Settings {
        shards: config.broker.shards,
        prefetch: delivery.prefetch,
        held_jobs_max: delivery.max_held,
        held_bytes_max: delivery.max_held_bytes.as_usize(),
        slots: delivery.max_in_flight,
        host_slots: delivery.host_in_flight,
        endpoint_slots: delivery.endpoint_in_flight_max,
        timeout: delivery.timeout.get(),
        retry_schedule: RetrySchedule::try_new(schedule).context("delivery.retry_schedule")?,
        slow_after: delivery.slow_after.get(),
        queue_max_wait: delivery.queue_max_wait.get(),
        drain_timeout: delivery.drain_timeout.get(),
    })
}

fn worker_deps(
    config: &Config,
    parts: &Parts,
    tracer: Option<Tracer>,
) -> anyhow::Result<postrider_worker::Deps> {
    let client = parts::client(config, &parts.policy)?;
    dependencies::watch_client(client.clone(), parts.metrics.clone());
    Ok(postrider_worker::Deps {
        broker: parts.broker.clone(),
        journal: parts.journal.clone(),
        store: parts.store.clone(),
        limits: parts.limits.clone(),
        client,
        policy: parts.policy.clone(),
        metrics: parts.metrics.clone(),
        tracer,
    })
}

fn ledger_settings(config: &Config) -> postrider_ledger::Settings {
    let days = |days: u32| std::time::Duration::from_secs(u64::from(days) * 24 * 3600);
    postrider_ledger::Settings {
        batch_max_records: config.recorder.batch_max_records,
        batch_max_bytes: config.recorder.batch_max_bytes.as_usize(),
        journal_prefetch: config.recorder.prefetch,
        tick: config.scheduler.tick.get(),
        claim_max: config.scheduler.batch,
        out_per_endpoint: config.scheduler.out_per_endpoint,
        lease: config.scheduler.lease.get(),
        payload_retention: days(config.retention.payload_days),
        log_retention: days(config.retention.log_days),
        ..postrider_ledger::Settings::default()
    }
}

fn ledger_deps(parts: &Parts) -> postrider_ledger::Deps {
    postrider_ledger::Deps {
        broker: parts.broker.clone(),
        jobs: parts.jobs.clone(),
        journal: parts.journal.clone(),
        store: parts.store.clone(),
        limits: parts.limits.clone(),
        metrics: parts.metrics.clone(),
    }
}

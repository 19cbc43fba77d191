//! What recording costs, without the rest: batches of records through a store's adapter, as the recorder makes them.
//!
//! For each store, shape and size of batch it tells messages recorded a second and the CPU-seconds per 10,000 messages of
//! this process (the adapter; for SQLite the whole store) and of Postgres. The records are made before the clock starts.

mod batches;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postrider_model::Record;
use postrider_secrets::Keyring;
use postrider_store::SharedStore;
use postrider_store_postgres::PostgresStore;
use postrider_store_sqlite::SqliteStore;

use crate::figures::figure;
use crate::process::Names;
use crate::report::say;
use crate::services::Postgres;
use crate::usage;
use batches::{Shape, Tenant, batches};

/// Messages that warm a store up before it is measured.
const WARM_UP: usize = 2_000;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The store to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["postgres", "sqlite"])]
    store: Vec<Which>,
    /// Messages of each measurement.
    #[arg(long, default_value_t = 20_000)]
    messages: usize,
    /// Messages in a batch.
    #[arg(long, value_delimiter = ',', default_values_t = [50, 200, 500])]
    batch: Vec<usize>,
    /// How a message's facts come to the store.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["together", "apart"])]
    shape: Vec<Shape>,
    /// A Postgres that is there already; its own, with fsync, without it.
    #[arg(long)]
    url: Option<String>,
    /// Where the SQLite file is made; the directory of temporary files without it.
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    Postgres,
    Sqlite,
}

/// What one measurement gave.
struct Cost {
    messages: usize,
    elapsed: Duration,
    own_s: f64,
    server_s: f64,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    ensure!(
        options.messages > 0 && !options.batch.contains(&0),
        "at least one message in a batch"
    );
    say("store     shape     batch   messages/s   CPU-s per 10,000: adapter   server");
    for which in &options.store {
        match which {
            Which::Postgres => on_postgres(&options).await?,
            Which::Sqlite => on_sqlite(&options).await?,
        }
    }
    Ok(())
}

fn keyring() -> Result<Arc<Keyring>> {
    Ok(Arc::new(Keyring::generate()?.0))
}

async fn on_postgres(options: &Options) -> Result<()> {
    let names = Names::default();
    let dir = tempfile::Builder::new().prefix("postrider-bench-").tempdir()?;
    let mut own = None;
    let url = match &options.url {
        Some(url) => url.clone(),
        None => {
            let server = Postgres::start(&names, dir.path()).await?;
            let url = server.database("record").await?;
            own = Some(server);
            url
        }
    };
    let settings = postrider_store_postgres::Settings::new(url.into(), keyring()?);
    let store: SharedStore = PostgresStore::connect(settings)?;
    measure_all(options, "postgres", &store, &names).await?;
    if let Some(server) = own {
        server.stop().await?;
    }
    Ok(())
}

async fn on_sqlite(options: &Options) -> Result<()> {
    let dir = match &options.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let settings = postrider_store_sqlite::Settings::new(keyring()?);
    let store: SharedStore = SqliteStore::open(dir.path().join("store.db"), settings)?;
    measure_all(options, "sqlite", &store, &Names::default()).await?;
    store.close().await;
    Ok(())
}

async fn measure_all(options: &Options, name: &str, store: &SharedStore, names: &Names) -> Result<()> {
    store.migrate().await?;
    let tenant = Tenant::make(store, name == "sqlite").await?;
    for shape in &options.shape {
        for batch in &options.batch {
            put(store, &batches(&tenant, *shape, WARM_UP, *batch)).await?;
            let cost = measure(store, names, &tenant, (*shape, options.messages, *batch)).await?;
            let per = |seconds: f64| seconds * 10_000.0 / figure(cost.messages as u64);
            say(&format!(
                "{name:<9} {:<9} {batch:>5} {:>12.0} {:>27.3} {:>8.3}",
                shape.name(),
                figure(cost.messages as u64) / cost.elapsed.as_secs_f64(),
                per(cost.own_s),
                per(cost.server_s),
            ));
        }
    }
    Ok(())
}

async fn measure(
    store: &SharedStore,
    names: &Names,
    tenant: &Tenant,
    (shape, messages, batch): (Shape, usize, usize),
) -> Result<Cost> {
    let batches = batches(tenant, shape, messages, batch);
    let server = || -> Result<f64> { Ok(usage::children(&names.get())?.values().map(|one| one.cpu_s).sum()) };
    let (own_before, server_before, started) = (usage::own_cpu_s()?, server()?, Instant::now());
    let recorded = put(store, &batches).await?;
    let elapsed = started.elapsed();
    ensure!(
        recorded == (messages, messages),
        "{messages} messages were sent, and {recorded:?} messages and attempts recorded"
    );
    Ok(Cost {
        messages,
        elapsed,
        own_s: usage::own_cpu_s()? - own_before,
        server_s: server()? - server_before,
    })
}

/// Records batches, one after the other; messages and attempts that were new.
async fn put(store: &SharedStore, batches: &[Vec<Record>]) -> Result<(usize, usize)> {
    let mut recorded = (0, 0);
    for batch in batches {
        let report = store.record(batch).await?;
        recorded.0 += report.messages;
        recorded.1 += report.attempts;
    }
    Ok(recorded)
}

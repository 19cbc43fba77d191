//! `postrider poison`: what could not be handled and was parked, straight on the store.
//!
//! `replay` first does what is to be done and removes the row afterwards, so nothing is lost in between. Done twice it
//! changes nothing: records are facts with ids of their own, and the manual delivery's id comes from the parked row.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use postrider_config::Config;
use postrider_model::{
    Accepted, DeferReason, DeliveryId, Disposition, Job, NewDelivery, Next, Outcome, Record, Trigger,
    UnixMillis,
};
use postrider_store::{EndpointRef, ParkedRow, SharedStore};
use postrider_telemetry::Metrics;
use postrider_wire::Frame;
use serde_json::json;

use crate::out::say;
use crate::parts::{self, Parts};

const BROKER_LIMIT: Duration = Duration::from_secs(15);
/// Rows of one list, and of one page of what is read.
const ROWS_MAX: u32 = 250;

/// What to do with what was parked.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List it, newest first.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=i64::from(ROWS_MAX)))]
        limit: u32,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Try again: a job as a new manual delivery, a record or a frame back into the journal.
    Replay(Which),
    /// Remove it for good.
    Drop(Which),
}

/// Which rows.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// Their numbers, from `poison list`.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<i64>,
    /// All of them, the oldest first.
    #[arg(long)]
    all: bool,
}

/// Runs the command.
pub(crate) async fn run(config: Config, command: Command) -> anyhow::Result<()> {
    let store = parts::existing_store(&config)?;
    store.check_schema().await?;
    let result = match command {
        Command::List { limit, json } => list(&store, limit, json).await,
        Command::Drop(which) => drop_all(&store, which).await,
        Command::Replay(which) => replay_all(&config, &store, which).await,
    };
    store.close().await;
    result
}

async fn list(store: &SharedStore, limit: u32, json: bool) -> anyhow::Result<()> {
    if json {
        let rows = newest(store, limit, |row| {
            json!({
                "id": row.id, "kind": row.kind, "at": show(row.at), "size": row.bytes.len(), "reason": row.reason,
                "holds": holds(row),
            })
        });
        return say(serde_json::to_string_pretty(&json!({"data": rows.await?}))?);
    }
    let lines = newest(store, limit, |row| {
        format!(
            "{}  {}  {}  {} bytes  {}: {}",
            row.id,
            show(row.at),
            row.kind,
            row.bytes.len(),
            holds(row),
            row.reason
        )
    });
    let lines = lines.await?;
    if lines.is_empty() {
        say("nothing is parked")?;
    }
    for line in lines {
        say(line)?;
    }
    Ok(())
}

/// What `show` makes of the newest rows. They are read page by page, since many large ones would not fit into memory.
async fn newest<T>(
    store: &SharedStore,
    limit: u32,
    show: impl Fn(&ParkedRow) -> T,
) -> anyhow::Result<Vec<T>> {
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    let (mut shown, mut before) = (Vec::new(), None);
    loop {
        let page = store.parked(limit, before).await?;
        let missing = wanted - shown.len();
        shown.extend(page.rows.iter().take(missing).map(&show));
        before = page.cut;
        if before.is_none() || shown.len() >= wanted {
            return Ok(shown);
        }
    }
}

async fn drop_all(store: &SharedStore, which: Which) -> anyhow::Result<()> {
    let mut failed = 0_usize;
    // Whoever stops reading, here and below, does not stop what was asked for.
    let mut said = Ok(());
    let all = which.all;
    for id in which.ids(store).await? {
        // The key may only be missing from this process' settings.
        if all && store.parked_row(id).await?.is_some_and(|row| row.sealed_away) {
            failed += 1;
            said = said.and(say(format_args!(
                "kept {id}: the key that sealed it is not there; name it to drop it"
            )));
            continue;
        }
        said = said.and(match store.unpark(id).await? {
            Some(row) => say(format_args!(
                "dropped {id}: {} of {} bytes, {}",
                row.kind,
                row.bytes.len(),
                holds(&row)
            )),
            None => {
                failed += 1;
                say(format_args!("nothing is parked as {id}"))
            }
        });
    }
    ensure!(failed == 0, "{failed} could not be dropped");
    said
}

async fn replay_all(config: &Config, store: &SharedStore, which: Which) -> anyhow::Result<()> {
    let ids = which.ids(store).await?;
    let journal = Journal::open(config, store).await?;
    let (mut failed, mut said) = (0_usize, Ok(()));
    for id in ids {
        said = said.and(match replay(store, &journal, id).await {
            Ok(done) => say(format_args!("replayed {id}: {done}")),
            Err(error) => {
                failed += 1;
                say(format_args!("kept {id}: {error:#}"))
            }
        });
    }
    journal.close().await;
    ensure!(failed == 0, "{failed} could not be replayed and are still parked");
    said
}

impl Which {
    async fn ids(self, store: &SharedStore) -> anyhow::Result<Vec<i64>> {
        if !self.all {
            return Ok(self.ids);
        }
        // In the order in which they came: messages of an `ordered` endpoint are recorded in the order of their replay.
        let (mut ids, mut before) = (Vec::new(), None);
        loop {
            let page = store.parked(ROWS_MAX, before).await?;
            ids.extend(page.rows.iter().map(|row| row.id));
            before = page.cut;
            if before.is_none() {
                ids.reverse();
                return Ok(ids);
            }
        }
    }
}

async fn replay(store: &SharedStore, journal: &Journal, id: i64) -> anyhow::Result<String> {
    let row = store
        .parked_row(id)
        .await?
        .context("nothing is parked under this number")?;
    ensure!(
        !row.sealed_away,
        "the key that sealed it is not there; put it back, or drop it"
    );
    let (records, done) = if row.kind == "job" {
        deliver_again(store, &row).await?
    } else {
        read_again(&row)?
    };
    journal.write(records).await?;
    store.unpark(id).await?;
    Ok(done)
}

/// The parked outcome of a job becomes a manual delivery of the same message to the same endpoint.
async fn deliver_again(store: &SharedStore, row: &ParkedRow) -> anyhow::Result<(Vec<Record>, String)> {
    let outcome = postrider_wire::decode_outcome(row.bytes.clone()).context("the job cannot be read")?;
    let endpoint = store
        .endpoint(outcome.app, &EndpointRef::Id(outcome.endpoint))
        .await?
        .context("its endpoint is deleted; drop it")?;
    ensure!(
        !endpoint.disabled,
        "its endpoint {} is disabled; enable it first",
        endpoint.id
    );
    let message = store
        .message(outcome.app, outcome.message, true)
        .await?
        .context("its message is gone; drop it")?;
    ensure!(
        !message.payload_gone,
        "its message's payload is no longer stored; drop it"
    );
    let delivery = DeliveryId::derive_again(outcome.message, outcome.endpoint, &nonce(row, &outcome));
    let record = Record::Accepted(Accepted {
        message: Arc::new(message.message),
        deliveries: vec![NewDelivery {
            id: delivery,
            endpoint: outcome.endpoint,
            disposition: if endpoint.ordered {
                Disposition::Ordered
            } else {
                Disposition::Waiting(DeferReason::Manual)
            },
        }],
        trigger: Trigger::Manual,
        claims: Vec::new(),
    });
    let done = format!(
        "{} goes to {} again, as manual delivery {delivery}",
        outcome.message, outcome.endpoint
    );
    Ok((vec![record], done))
}

/// The same for the same parked row, so that a repeat makes the same delivery.
fn nonce(row: &ParkedRow, outcome: &Outcome) -> Vec<u8> {
    let mut nonce = b"parked".to_vec();
    nonce.extend_from_slice(outcome.delivery.as_bytes());
    nonce.extend_from_slice(&row.id.to_be_bytes());
    nonce
}

/// A frame that this program can read, whole: its records go to the journal, its jobs wait in the store.
fn read_again(row: &ParkedRow) -> anyhow::Result<(Vec<Record>, String)> {
    match postrider_wire::decode_partial(row.bytes.clone()) {
        Ok((_, rejected)) if !rejected.is_empty() => bail!(
            "{} of its items still cannot be read ({}); a newer version may",
            rejected.len(),
            rejected[0].error
        ),
        Ok((Frame::Journal(records), _)) => {
            let done = format!("{} records went back into the journal", records.len());
            Ok((records, done))
        }
        Ok((Frame::Jobs(jobs), _)) => {
            let done = format!("{} deliveries wait in the store, due now", jobs.len());
            Ok((jobs.iter().map(waiting_again).collect(), done))
        }
        Err(error) => Err(anyhow::Error::new(error).context("it still cannot be read; a newer version may")),
    }
}

fn waiting_again(job: &Job) -> Record {
    Record::Outcome(Box::new(Outcome {
        delivery: job.delivery,
        message: job.message.id,
        endpoint: job.endpoint,
        app: job.message.app,
        run: job.run,
        attempts: job.attempts,
        trigger: job.trigger,
        at: UnixMillis::now(),
        attempt: None,
        next: Next::Deferred {
            reason: DeferReason::Stray,
            delay: Duration::ZERO,
        },
    }))
}

/// Where records go: to the broker's journal; embedded, where the journal is inside the running process, into its store.
enum Journal {
    Broker(Box<Parts>),
    Store(SharedStore),
}

impl Journal {
    async fn open(config: &Config, store: &SharedStore) -> anyhow::Result<Self> {
        if !config.is_scaled_out() {
            return Ok(Self::Store(store.clone()));
        }
        let parts = Box::new(parts::parts(config, store.clone(), Metrics::new()).await?);
        crate::status::wait_for_broker(&parts, BROKER_LIMIT).await?;
        Ok(Self::Broker(parts))
    }

    async fn write(&self, records: Vec<Record>) -> anyhow::Result<()> {
        match self {
            Self::Broker(parts) => Ok(parts.journal.publish(records).await?),
            Self::Store(store) => store.record(&records).await.map(drop).map_err(Into::into),
        }
    }

    async fn close(&self) {
        if let Self::Broker(parts) = self {
            parts.broker.close().await;
        }
    }
}

/// What is in it, as far as it can be read.
fn holds(row: &ParkedRow) -> String {
    if row.sealed_away {
        return "sealed with a key that is not there".to_owned();
    }
    if row.kind == "job" {
        return match postrider_wire::decode_outcome(row.bytes.clone()) {
            Ok(outcome) => format!(
                "{} of {} to {}",
                outcome.delivery, outcome.message, outcome.endpoint
            ),
            Err(_) => "unreadable".to_owned(),
        };
    }
    match postrider_wire::decode_partial(row.bytes.clone()) {
        Ok((Frame::Journal(records), rejected)) => {
            format!(
                "{} journal records, {} unreadable",
                records.len() + rejected.len(),
                rejected.len()
            )
        }
        Ok((Frame::Jobs(jobs), rejected)) => {
            format!(
                "{} deliveries, {} unreadable",
                jobs.len() + rejected.len(),
                rejected.len()
            )
        }
        Err(_) => "unreadable".to_owned(),
    }
}

fn show(at: UnixMillis) -> String {
    jiff::Timestamp::from_millisecond(at.0)
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}

//! Backup while serving and restore into a new place, as `docs/operations.md` tells it; on both set-ups.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postrider_testkit::process::Postrider;
use postrider_testkit::receiver::{Receiver, Reply, Script};
use postrider_testkit::services::{PostgresDatabase, find_binary};
use postrider_testkit::wait::{Poll, wait_for};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::api::Api;
use crate::faults::SHORT_LEASE;
use crate::stack::{ADMIN_KEY, SOON, Shape, Shared, Stack};

/// Messages that were delivered, that wait for a receiver, and what must be the same after a restore.
struct Kept {
    receiver: Receiver,
    app: String,
    endpoint: String,
    delivered: String,
    waiting: Vec<String>,
    secret: Value,
}

impl Kept {
    async fn make(api: &Api) -> Result<Self> {
        let receiver = Receiver::start().await?;
        let app = api.app().await?;
        let body = json!({"url": receiver.url("/hook"), "retrySchedule": vec![3; 20]});
        let endpoint = api.endpoint_with(&app, body).await?;
        let delivered = api.send(&app, json!({"n": "delivered"})).await?;
        api.wait_status(&app, &delivered, "success").await?;
        receiver.on("/hook", Script::always(Reply::Status(503)));
        let mut waiting = vec![];
        for n in 0..5 {
            waiting.push(api.send(&app, json!({ "n": n })).await?);
        }
        for id in &waiting {
            api.wait_status(&app, id, "sending").await?;
        }
        let secret = api.get(&format!("/app/{app}/endpoint/{endpoint}/secret")).await?;
        Ok(Self {
            receiver,
            app,
            endpoint,
            delivered,
            waiting,
            secret,
        })
    }

    /// After the restore: the record is readable, and what waited is delivered.
    async fn check(&self, api: &Api, late: &str) -> Result<()> {
        let (app, endpoint) = (&self.app, &self.endpoint);
        let message = api.get(&format!("/app/{app}/msg/{}", self.delivered)).await?;
        ensure!(message["payload"] == json!({"n": "delivered"}), "{message}");
        let attempts = api
            .get(&format!("/app/{app}/attempt/msg/{}", self.delivered))
            .await?;
        ensure!(attempts["data"][0]["responseStatusCode"] == 200, "{attempts}");
        let secret = api.get(&format!("/app/{app}/endpoint/{endpoint}/secret")).await?;
        ensure!(secret == self.secret, "the secret changed");
        for id in &self.waiting {
            api.wait_status(app, id, "success").await?;
        }
        // The price of a backup: what came after it is unknown.
        let path = format!("/app/{app}/msg/{late}");
        wait_for("what came after the backup to be unknown", SOON, async || {
            let answer = api.call(reqwest::Method::GET, &path, None).await?;
            // A message so young may still be on its way to the record, for all that the gateway knows.
            Ok(if answer.status == reqwest::StatusCode::NOT_FOUND {
                Poll::Ready(())
            } else {
                Poll::NotYet(format!("{answer:?}"))
            })
        })
        .await?;
        // What is new is delivered as ever.
        let next = api.send(app, json!({"n": "after"})).await?;
        api.wait_status(app, &next, "success").await
    }
}

#[tokio::test]
async fn a_backup_of_the_embedded_store() -> Result<()> {
    let (data, restored) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut process = Postrider::builder().data_dir(data.path()).start().await?;
    let key = process.admin_key().await?;
    let api = Api::new(&process.url(), &key);
    let kept = Kept::make(&api).await?;

    // What `sqlite3 postrider.db "VACUUM INTO 'backup.db'"` does, from another process' point of view.
    let backup = data.path().join("backup.db");
    let source = data.path().join("postrider.db");
    vacuum_into(&source, &backup).await?;
    let late = api.send(&kept.app, json!({"n": "late"})).await?;
    process.kill9();

    let place = restored.path().join("data");
    std::fs::create_dir(&place)?;
    std::fs::copy(&backup, place.join("postrider.db"))?;
    std::fs::copy(data.path().join("secrets.key"), place.join("secrets.key"))?;
    kept.receiver.on("/hook", Script::always(Reply::Status(200)));
    let process = Postrider::builder().data_dir(&place).start().await?;
    kept.check(&Api::new(&process.url(), &key), &late).await
}

async fn vacuum_into(source: &Path, target: &Path) -> Result<()> {
    let (source, target) = (
        source.to_owned(),
        target.to_str().context("a path in UTF-8")?.to_owned(),
    );
    let done = tokio::task::spawn_blocking(move || -> rusqlite::Result<()> {
        let connection = rusqlite::Connection::open(source)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.execute("VACUUM INTO ?1", [target])?;
        Ok(())
    });
    Ok(done.await??)
}

/// Without what only this program understands.
fn plain(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

/// A program of the server's own version: another one may refuse it.
fn postgres_tool(name: &str) -> Result<PathBuf> {
    find_binary(name).with_context(|| format!("`{name}` is not installed; it comes with Postgres' client"))
}

async fn run(program: PathBuf, args: &[&str]) -> Result<()> {
    let output = Command::new(&program)
        .args(args)
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[tokio::test]
async fn a_backup_of_postgres() -> Result<()> {
    // What is leased when the backup is made is due again when its lease ends.
    let (lease, time) = SHORT_LEASE;
    let shared = Shared::on_shared_services().await?;
    let mut stack = Stack::scaled_on(shared, Shape::SMALL, |builder| builder.env(lease, time)).await?;
    let api = stack.api();
    let kept = Kept::make(&api).await?;
    let files = tempfile::tempdir()?;
    let dump = files.path().join("backup.dump");
    let dump = dump.to_str().context("a path in UTF-8")?;
    let (amqp, redis, url) = {
        let shared = stack.shared.as_ref().context("a scaled-out stack")?;
        (shared.amqp.clone(), shared.redis.clone(), shared.postgres.clone())
    };
    run(
        postgres_tool("pg_dump")?,
        &["--format=custom", "--file", dump, plain(&url)],
    )
    .await?;
    let late = api.send(&kept.app, json!({"n": "late"})).await?;
    for process in stack.processes_mut() {
        process.kill9();
    }

    let restored = PostgresDatabase::create().await?;
    let args = [
        "--exit-on-error",
        "--no-owner",
        "--dbname",
        plain(restored.url()),
        dump,
    ];
    run(postgres_tool("pg_restore")?, &args).await?;
    kept.receiver.on("/hook", Script::always(Reply::Status(200)));
    // A prefix of its own: the queues of the moment that was lost are left behind.
    let shared = Shared::on(amqp, redis, restored.url().to_owned());
    let stack = Stack::scaled_on(shared, Shape::SMALL, |builder| builder).await?;
    kept.check(&Api::new(&stack.gateways[0].url(), ADMIN_KEY), &late)
        .await
}

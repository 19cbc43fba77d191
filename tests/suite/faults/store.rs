//! Postgres away: messages to cached applications are accepted and delivered, outcomes collect in the journal up to its
//! limit, and everything is on record once it is back. Who starts without it says so and waits.

use std::time::Duration;

use anyhow::{Result, ensure};
use postrider_testkit::process::Postrider;
use postrider_testkit::services::{self, PostgresServer};
use postrider_testkit::wait::{Poll, wait_for_every};

use super::trial::Trial;
use super::{LOOK, SETTLE, SHORT_LEASE, Scene, Servers, wait_health};
use crate::stack::{SOON, Shape, Shared, Stack};

const OUTAGE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn postgres_stopped_for_long_under_load() -> Result<()> {
    let mut trial = Trial::begin(100).await?;
    trial.servers.postgres.stop().await?;
    for process in trial.stack.processes_mut() {
        // What was read once goes on: ready all the same.
        wait_health(process, "store", "down", true, SOON).await?;
    }
    let end = tokio::time::Instant::now() + OUTAGE;
    while tokio::time::Instant::now() < end {
        trial.load.progress(20, SOON).await?;
        trial.scene.arrivals(20, SOON).await?;
    }
    trial.servers.postgres.start_again().await?;
    trial.load.progress(50, SOON).await?;
    costs_nothing(trial, "Postgres stopped").await
}

#[tokio::test]
async fn postgres_killed_under_load() -> Result<()> {
    let mut trial = Trial::begin(0).await?;
    for _ in 0..2 {
        trial.load.progress(50, SOON).await?;
        trial.servers.postgres.kill9();
        trial.load.progress(50, SOON).await?;
        trial.servers.postgres.start_again().await?;
    }
    trial.load.progress(50, SOON).await?;
    costs_nothing(trial, "Postgres killed").await
}

/// No message was refused meanwhile, and no delivery doubled.
async fn costs_nothing(trial: Trial, what: &str) -> Result<()> {
    ensure!(
        trial.load.refusals().is_empty(),
        "losing the store costs no message: {}",
        trial.load
    );
    let verdict = trial.end(what).await?;
    ensure!(verdict.duplicates == 0, "{verdict}");
    Ok(())
}

#[tokio::test]
async fn above_the_journals_limit_messages_are_refused() -> Result<()> {
    let mut servers = Servers::start().await?;
    let stack = Stack::scaled_on(servers.shared(), Shape::SMALL, |builder| {
        builder
            .env("POSTRIDER_INGEST__JOURNAL_MAX_FRAMES", "100")
            .env(SHORT_LEASE.0, SHORT_LEASE.1)
    })
    .await?;
    let api = stack.api();
    let scene = Scene::new(&api).await?;
    let load = scene.load(std::slice::from_ref(&api));
    load.progress(50, SOON).await?;
    servers.postgres.stop().await?;
    load.refused_with("journal_full", SETTLE).await?;
    wait_health(&stack.gateways[0], "journal", "full", false, SOON).await?;
    // There is room for outcomes: what was accepted is delivered although nobody records it.
    let expected = scene.oracle.expected();
    wait_for_every(LOOK, "most deliveries to arrive unrecorded", SOON, async || {
        let verdict = scene.oracle.judge(&[&scene.receiver])?;
        // What failed at first waits for the store.
        Ok(if verdict.missing * 2 < expected {
            Poll::Ready(())
        } else {
            Poll::NotYet(verdict.to_string())
        })
    })
    .await?;
    load.only_asked_to_retry()?;
    servers.postgres.start_again().await?;
    wait_health(&stack.gateways[0], "journal", "up", true, SOON).await?;
    load.progress(50, SOON).await?;
    load.only_asked_to_retry()?;
    load.finish().await?;
    let verdict = scene.settle(&api, "journal full").await?;
    ensure!(
        verdict.unacknowledged == 0 && verdict.duplicates == 0,
        "{verdict}"
    );
    Ok(())
}

#[tokio::test]
async fn a_cold_worker_without_the_store_is_unready_and_recovers() -> Result<()> {
    let mut servers = Servers::start().await?;
    let mut stack = servers.stack().await?;
    let api = stack.api();
    let scene = Scene::new(&api).await?;
    let load = scene.load(std::slice::from_ref(&api));
    load.progress(50, SOON).await?;
    stack.workers[0].kill9();
    servers.postgres.stop().await?;
    let cold = stack
        .shared
        .iter()
        .map(|shared| shared.builder("worker").spawn())
        .collect::<Result<Vec<_>>>()?;
    stack.workers = cold;
    wait_health(&stack.workers[0], "store", "down", false, SOON).await?;
    let arrived = scene.receiver.total();
    load.progress(50, SOON).await?;
    wait_health(&stack.workers[0], "store", "down", false, SOON).await?;
    ensure!(
        scene.receiver.total() == arrived,
        "delivered without knowing the endpoint"
    );
    servers.postgres.start_again().await?;
    let pid = stack.workers[0].pid();
    wait_health(&stack.workers[0], "store", "up", true, SOON).await?;
    load.progress(50, SOON).await?;
    load.finish().await?;
    let verdict = scene.settle(&api, "cold worker").await?;
    ensure!(verdict.unacknowledged == 0, "{verdict}");
    ensure!(stack.workers[0].pid() == pid, "the worker was restarted");
    no_attempt_was_counted(&stack, &scene).await
}

#[tokio::test]
async fn a_schema_that_is_seen_late_ends_who_cannot_work_on_it() -> Result<()> {
    let mut postgres = PostgresServer::start().await?;
    // Nobody migrates this database.
    let shared = Shared::on(
        services::rabbitmq().await?,
        services::redis().await?,
        postgres.url(),
    );
    postgres.stop().await?;
    let mut processes = ["gateway", "worker", "ledger"]
        .map(|role| shared.builder(role).spawn())
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for process in &processes {
        wait_health(process, "store", "down", false, SOON).await?;
    }
    postgres.start_again().await?;
    for process in &mut processes {
        let status = never_ready(process).await?;
        ensure!(!status.success(), "ended with {status}");
        let log = process.log();
        ensure!(
            log.contains("run `postrider migrate`"),
            "the last word names no cure: {log}"
        );
    }
    Ok(())
}

/// Asks a process whether it is ready, until it ends by itself.
async fn never_ready(process: &mut Postrider) -> Result<std::process::ExitStatus> {
    let url = format!("{}/health/ready", process.url());
    let watch = async {
        loop {
            if let Ok(answer) = reqwest::get(&url).await
                && answer.status().is_success()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        ended = process.wait_exit(SOON) => ended,
        () = watch => anyhow::bail!("ready on a store without tables"),
    }
}

/// Whose fault it was is a type: being without configuration counts as no attempt of the endpoint that always answers.
async fn no_attempt_was_counted(stack: &Stack, scene: &Scene) -> Result<()> {
    let (api, (endpoint, _)) = (stack.api(), &scene.endpoints[0]);
    let path = format!("/app/{}/attempt/endpoint/{endpoint}?status=2&limit=50", scene.app);
    let failed = api.get(&path).await?;
    ensure!(
        failed["data"].as_array().is_some_and(Vec::is_empty),
        "failed attempts of an endpoint without fault: {failed}"
    );
    Ok(())
}

//! RabbitMQ away, its queues deleted, its connections closed, its publishers blocked: producers are asked to come back,
//! nothing acknowledged is missing, and all heals without a restart.

use std::time::Duration;

use anyhow::{Result, ensure};
use postrider_testkit::services::RabbitServer;
use postrider_testkit::wait::{Poll, wait_for_every};

use super::trial::Trial;
use super::{LOOK, Scene, Servers, metric, pids, wait_health, with_metrics};
use crate::stack::{SOON, Stack};

/// Longer than any client library retries by itself.
const OUTAGE: Duration = Duration::from_secs(30);

async fn wait_broker(stack: &mut Stack, state: &str, ready: bool) -> Result<()> {
    for process in stack.processes_mut() {
        wait_health(process, "broker", state, ready, SOON).await?;
    }
    Ok(())
}

#[tokio::test]
async fn rabbitmq_stopped_for_long_and_started_again() -> Result<()> {
    let mut trial = Trial::begin(100).await?;
    trial.servers.rabbit.stop().await?;
    wait_broker(&mut trial.stack, "down", false).await?;
    trial.load.refused_with("broker_unavailable", SOON).await?;
    tokio::time::sleep(OUTAGE).await;
    trial.load.only_asked_to_retry()?;
    trial.servers.rabbit.start_again().await?;
    wait_broker(&mut trial.stack, "up", true).await?;
    trial.load.progress(100, SOON).await?;
    trial.load.only_asked_to_retry()?;
    trial.end("RabbitMQ stopped").await?;
    Ok(())
}

#[tokio::test]
async fn rabbitmq_killed_under_load() -> Result<()> {
    let mut trial = Trial::begin(0).await?;
    for _ in 0..2 {
        trial.load.progress(60, SOON).await?;
        trial.servers.rabbit.kill9();
        trial.servers.rabbit.start_again().await?;
        elect_leaders(&trial.servers.rabbit).await?;
        wait_broker(&mut trial.stack, "up", true).await?;
    }
    trial.load.progress(60, SOON).await?;
    trial.load.only_asked_to_retry()?;
    trial.end("RabbitMQ killed").await?;
    Ok(())
}

/// After a kill a single node may leave a quorum queue without a leader for ever (rabbitmq-server issue 10070); operators
/// help it by asking for an election, which queues with a leader ignore.
async fn elect_leaders(rabbit: &RabbitServer) -> Result<()> {
    let elect = "[ra:trigger_election(amqqueue:get_pid(Q)) || Q <- rabbit_amqqueue:list()].";
    rabbit.ctl(&["await_startup"]).await?;
    rabbit.ctl(&["eval", elect]).await?;
    Ok(())
}

/// The worker is frozen meanwhile, so that it does not declare the queues again before something goes astray. They are
/// deleted empty: what is in a queue when somebody deletes it is deleted by that somebody.
#[tokio::test]
async fn a_queue_deleted_under_the_gateway() -> Result<()> {
    let servers = Servers::start().await?;
    let mut stack = servers.stack().await?;
    let metrics = with_metrics(&mut stack.ledgers[0])?;
    stack.ledgers[0].start_again().await?;
    let api = stack.api();
    let scene = Scene::new(&api).await?;
    let load = scene.load(std::slice::from_ref(&api));
    load.progress(50, SOON).await?;
    load.finish().await?;
    scene.settle(&api, "before the queues are deleted").await?;

    let before = pids(&mut stack);
    let names: Vec<String> = stack
        .shared
        .iter()
        .flat_map(|shared| (0..4).map(|n| shared.queue(&format!("deliver.{n}"))))
        .collect();
    let mut stray = 0.0;
    // Who connects anew just then declares the queues, and nothing goes astray: once more.
    for _ in 0..3 {
        stack.workers[0].pause()?;
        for name in &names {
            servers.rabbit.ctl(&["delete_queue", name]).await?;
        }
        let load = scene.load(std::slice::from_ref(&api));
        load.progress(50, SOON).await?;
        stack.workers[0].resume()?;
        load.progress(50, SOON).await?;
        load.finish().await?;
        let verdict = scene.settle(&api, "queues deleted").await?;
        ensure!(verdict.unacknowledged == 0, "{verdict}");
        stray = metric(&metrics, "postrider_frames_stray_total").await?;
        if stray > 0.0 {
            break;
        }
        // Those that are deleted next must be there.
        wait_declared(&servers.rabbit, &names).await?;
    }
    ensure!(stray > 0.0, "nothing went astray: the test is void");
    ensure!(pids(&mut stack) == before, "a process was restarted");
    wait_declared(&servers.rabbit, &names).await
}

/// Waits until somebody has declared these queues again.
async fn wait_declared(rabbit: &RabbitServer, names: &[String]) -> Result<()> {
    wait_for_every(LOOK, "the queues to be declared again", SOON, async || {
        let listed = rabbit.ctl(&["list_queues", "name"]).await?;
        let there = names.iter().all(|name| listed.lines().any(|line| line == name));
        Ok(if there {
            Poll::Ready(())
        } else {
            Poll::NotYet(listed)
        })
    })
    .await
}

#[tokio::test]
async fn all_connections_closed_under_load() -> Result<()> {
    let trial = Trial::begin(0).await?;
    for _ in 0..3 {
        trial.load.progress(50, SOON).await?;
        trial
            .servers
            .rabbit
            .ctl(&["close_all_connections", "a test"])
            .await?;
    }
    trial.load.progress(50, SOON).await?;
    trial.load.only_asked_to_retry()?;
    let verdict = trial.end("connections closed").await?;
    ensure!(
        verdict.duplicates == 0,
        "what came back while it was at work was doubled: {verdict}"
    );
    Ok(())
}

#[tokio::test]
async fn a_memory_alarm_blocks_and_heals() -> Result<()> {
    let mut trial = Trial::begin(50).await?;
    trial
        .servers
        .rabbit
        .ctl(&["set_vm_memory_high_watermark", "0"])
        .await?;
    // RabbitMQ says so only to who publishes: a worker or a ledger that has nothing to publish is not told.
    wait_health(trial.stack.of_role("gateway"), "broker", "blocked", false, SOON).await?;
    trial.load.refused_with("broker_blocked", SOON).await?;
    let accepted = trial.load.accepted();
    // Workers start no POST whose outcome could not be kept; what was under way is over by now.
    wait_quiet(&trial.scene).await?;
    ensure!(
        trial.load.accepted() == accepted,
        "accepted while blocked: {}",
        trial.load
    );
    trial
        .servers
        .rabbit
        .ctl(&["set_vm_memory_high_watermark", "0.9"])
        .await?;
    wait_broker(&mut trial.stack, "up", true).await?;
    trial.load.progress(50, SOON).await?;
    trial.load.only_asked_to_retry()?;
    let verdict = trial.end("memory alarm").await?;
    ensure!(verdict.duplicates == 0, "{verdict}");
    Ok(())
}

/// Waits until nothing arrived for three seconds.
async fn wait_quiet(scene: &Scene) -> Result<()> {
    let mut last = None;
    wait_for_every(Duration::from_secs(3), "POSTs to cease", SOON, async || {
        let total = scene.receiver.total();
        let quiet = last.replace(total) == Some(total);
        Ok(if quiet {
            Poll::Ready(())
        } else {
            Poll::NotYet(format!("{total} requests"))
        })
    })
    .await
}

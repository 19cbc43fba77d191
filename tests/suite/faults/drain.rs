//! SIGTERM under load: requests and attempts under way are finished, nothing new is taken, the exit code is 0.

use std::time::Duration;

use anyhow::{Result, ensure};
use postrider_testkit::process::Postrider;
use postrider_testkit::receiver::{Reply, Script};

use super::{SHORT_LEASE, Scene};
use crate::stack::{SOON, Shape, Shared, Stack};

/// The default drain timeout of a worker, and some time to close connections.
const DRAIN: Duration = Duration::from_secs(35);

async fn two_of_each() -> Result<Stack> {
    let (lease, time) = SHORT_LEASE;
    let shape = Shape {
        gateways: 2,
        workers: 2,
        ledgers: 2,
    };
    let shared = Shared::on_shared_services().await?;
    Stack::scaled_on(shared, shape, |builder| builder.env(lease, time)).await
}

async fn terminate(process: &mut Postrider) -> Result<()> {
    let status = process.terminate(DRAIN).await?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

#[tokio::test]
async fn sigterm_of_each_role_under_load() -> Result<()> {
    let mut stack = two_of_each().await?;
    let apis = [stack.api_of(0), stack.api_of(1)];
    let scene = Scene::new(&apis[1]).await?;
    scene.receiver.on(
        "/fine",
        Script::always(Reply::Status(200)).delay(Duration::from_millis(300)),
    );
    let load = scene.load(&apis);
    load.progress(100, SOON).await?;
    terminate(&mut stack.gateways[0]).await?;
    load.progress(100, SOON).await?;
    terminate(&mut stack.workers[0]).await?;
    load.progress(100, SOON).await?;
    terminate(&mut stack.ledgers[0]).await?;
    load.progress(100, SOON).await?;
    ensure!(load.refusals().is_empty(), "producers saw an error: {load}");
    load.finish().await?;
    let verdict = scene.settle(&apis[1], "drained").await?;
    ensure!(
        verdict.unacknowledged == 0,
        "a repeat made another message: {verdict}"
    );
    ensure!(
        verdict.duplicates == 0,
        "a drained worker left a POST without its outcome: {verdict}"
    );
    Ok(())
}

#[tokio::test]
async fn sigterm_of_the_embedded_process_under_load() -> Result<()> {
    let mut stack = Stack::embedded().await?;
    let api = stack.api();
    let scene = Scene::new(&api).await?;
    scene.receiver.on(
        "/fine",
        Script::always(Reply::Status(200)).delay(Duration::from_millis(300)),
    );
    let load = scene.load(std::slice::from_ref(&api));
    load.progress(100, SOON).await?;
    terminate(&mut stack.gateways[0]).await?;
    ensure!(load.refusals().is_empty(), "producers saw an error: {load}");
    stack.gateways[0].start_again().await?;
    load.progress(100, SOON).await?;
    load.finish().await?;
    let verdict = scene.settle(&api, "drained").await?;
    ensure!(
        verdict.unacknowledged == 0,
        "a repeat made another message: {verdict}"
    );
    ensure!(
        verdict.duplicates == 0,
        "a drained worker left a POST without its outcome: {verdict}"
    );
    Ok(())
}

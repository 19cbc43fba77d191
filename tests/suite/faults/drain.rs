//! SIGTERM under load: requests and attempts under way are finished, nothing new is taken, the exit code is 0.

use std::time::Duration;

use anyhow::{Result, ensure};
use postrider_testkit::process::Postrider;
use postrider_testkit::receiver::{Receiver, Reply, Script};
use serde_json::json;

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

/// How long the end of a process may take that has nothing, or next to nothing, to wait for: far less than any of its
/// time limits.
const AT_ONCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn sigterm_ends_an_idle_embedded_process_at_once() -> Result<()> {
    let mut stack = Stack::embedded().await?;
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    api.endpoint(&app, &receiver.url("/hook")).await?;
    let message = api.send(&app, json!({"n": 1})).await?;
    api.wait_status(&app, &message, "success").await?;
    // A retry waits for its time, and `api` holds a connection open.
    receiver.on("/hook", Script::always(Reply::Status(500)));
    let message = api.send(&app, json!({"n": 2})).await?;
    api.wait_status(&app, &message, "sending").await?;
    let status = stack.gateways[0].terminate(AT_ONCE).await?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

#[tokio::test]
async fn sigterm_ends_an_embedded_process_with_its_attempts() -> Result<()> {
    let mut stack = Stack::embedded().await?;
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    receiver.on(
        "/hook",
        Script::always(Reply::Status(200)).delay(Duration::from_secs(3)),
    );
    let app = api.app().await?;
    api.endpoint(&app, &receiver.url("/hook")).await?;
    let message = api.send(&app, json!({})).await?;
    receiver
        .wait_for("/hook", SOON, |requests| requests.len() == 1)
        .await?;
    let status = stack.gateways[0].terminate(AT_ONCE).await?;
    ensure!(status.success(), "it ended with {status}");
    stack.gateways[0].start_again().await?;
    stack.api().wait_status(&app, &message, "success").await?;
    ensure!(receiver.count("/hook") == 1, "it was tried twice");
    Ok(())
}

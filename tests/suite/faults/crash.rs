//! `kill -9` of each role, at each step of a delivery (by failpoints) and at random moments; on both set-ups.
//!
//! A producer retries under its idempotency key, so whatever dies, a message has one id: an id that arrives without
//! ever having been acknowledged is a message accepted twice. A delivery is doubled only if a worker died between
//! its POST and its outcome.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postrider_testkit::oracle::Verdict;
use postrider_testkit::receiver::Receiver;
use postrider_testkit::wait::{Poll, wait_for};
use rand::RngExt;
use serde_json::json;

use super::{LOOK, SHORT_LEASE, Scene, metric, say, with_metrics};
use crate::stack::{SOON, Shape, Shared, Stack};

const FAILPOINT: &str = "POSTRIDER_FAILPOINT";
const SIGABRT: i32 = 6;

/// A test of each failpoint under load on each set-up: the place, the passage that kills, the role that passes there.
macro_rules! under_load {
    ($($name:literal, $passage:literal, $role:literal => $scaled:ident, $embedded:ident;)*) => {
        const COVERED: &[&str] = &[$($name),*];
        $(
            #[tokio::test]
            async fn $scaled() -> Result<()> {
                dies_under_load(scaled($name, $passage).await?, $name, $role).await
            }

            #[tokio::test]
            async fn $embedded() -> Result<()> {
                dies_under_load(embedded($name, $passage).await?, $name, $role).await
            }
        )*
    };
}

under_load! {
    "gateway.before_publish", 60, "gateway" => gateway_before_publish_scaled_out, gateway_before_publish_embedded;
    "gateway.after_publish", 60, "gateway" => gateway_after_publish_scaled_out, gateway_after_publish_embedded;
    "worker.before_post", 150, "worker" => worker_before_post_scaled_out, worker_before_post_embedded;
    "worker.after_post", 150, "worker" => worker_after_post_scaled_out, worker_after_post_embedded;
    "worker.after_outcome", 150, "worker" => worker_after_outcome_scaled_out, worker_after_outcome_embedded;
    "recorder.after_store", 10, "ledger" => recorder_after_store_scaled_out, recorder_after_store_embedded;
    "scheduler.after_lease", 3, "ledger" => scheduler_after_lease_scaled_out, scheduler_after_lease_embedded;
    "scheduler.after_publish", 3, "ledger" => scheduler_after_publish_scaled_out, scheduler_after_publish_embedded;
}

#[test]
fn every_failpoint_is_covered() {
    assert_eq!(COVERED, postrider_failpoint::ALL);
}

async fn scaled(name: &str, passage: u32) -> Result<Stack> {
    let armed = format!("{name}:{passage}");
    let (lease, time) = SHORT_LEASE;
    let shared = Shared::on_shared_services().await?;
    Stack::scaled_on(shared, Shape::SMALL, |builder| {
        builder.env(FAILPOINT, &armed).env(lease, time)
    })
    .await
}

async fn embedded(name: &str, passage: u32) -> Result<Stack> {
    let armed = format!("{name}:{passage}");
    Stack::embedded_with(|builder| builder.env(FAILPOINT, &armed)).await
}

async fn dies_under_load(mut stack: Stack, name: &str, role: &str) -> Result<()> {
    let api = stack.api();
    let scene = Scene::new(&api).await?;
    let load = scene.load(std::slice::from_ref(&api));
    let process = stack.of_role(role);
    let status = process
        .wait_exit(SOON)
        .await
        .with_context(|| format!("{name} was not passed: {load}"))?;
    ensure!(status.signal() == Some(SIGABRT), "{name}: it ended with {status}");
    process.set_env(FAILPOINT, None);
    process.start_again().await?;
    load.progress(100, SOON).await?;
    load.finish().await?;
    let verdict = scene.settle(&api, name).await?;
    judge(&verdict, stack.shared.is_some() && role != "worker")
}

/// No message was accepted twice; and where no worker died, no delivery was made twice.
fn judge(verdict: &Verdict, workers_lived: bool) -> Result<()> {
    ensure!(
        verdict.unacknowledged == 0,
        "a repeat made another message: {verdict}"
    );
    ensure!(
        !workers_lived || verdict.duplicates == 0,
        "a delivery was doubled although no worker died: {verdict}"
    );
    Ok(())
}

#[tokio::test]
async fn a_done_mark_answers_for_a_delivery_that_comes_back() -> Result<()> {
    let mut stack = scaled("worker.after_outcome", 1).await?;
    one_delivery(&mut stack, "worker", 1).await
}

#[tokio::test]
async fn a_recorded_outcome_is_not_repeated_embedded() -> Result<()> {
    let mut stack = embedded("worker.after_outcome", 1).await?;
    one_delivery(&mut stack, "worker", 0).await
}

#[tokio::test]
async fn a_repeat_after_publish_gets_the_same_message_scaled_out() -> Result<()> {
    let mut stack = scaled("gateway.after_publish", 1).await?;
    one_delivery(&mut stack, "gateway", 1).await
}

#[tokio::test]
async fn a_repeat_after_publish_gets_the_same_message_embedded() -> Result<()> {
    let mut stack = embedded("gateway.after_publish", 1).await?;
    one_delivery(&mut stack, "gateway", 0).await
}

/// One message, one endpoint, one crash after the decisive step: one id, one POST. Where the delivery comes back to a
/// worker, its mark answers for it (`suppressed`).
async fn one_delivery(stack: &mut Stack, role: &str, suppressed: u32) -> Result<()> {
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    api.endpoint(&app, &receiver.url("/hook")).await?;
    let payload = json!({"n": 1});
    let metrics = with_metrics(stack.of_role("worker"))?;
    let process = stack.of_role(role);
    let revive = async {
        process.wait_exit(SOON).await?;
        process.set_env(FAILPOINT, None);
        process.start_again().await
    };
    let (message, ()) = tokio::try_join!(api.send_until_accepted(&app, &payload, "key", SOON), revive)?;
    let again = api.send_until_accepted(&app, &payload, "key", SOON).await?;
    ensure!(message == again, "a repeat got {again} instead of {message}");
    api.wait_status(&app, &message, "success").await?;
    if suppressed > 0 && role == "worker" {
        wait_for("the mark to answer", SOON, async || {
            let count = metric(&metrics, "postrider_duplicates_suppressed_total").await?;
            Ok(if count >= f64::from(suppressed) {
                Poll::Ready(())
            } else {
                Poll::NotYet(format!("{count}"))
            })
        })
        .await?;
    }
    // Another message goes the whole way behind it, so the first one has had its time to come twice.
    let behind = api.send(&app, json!({"n": 2})).await?;
    api.wait_status(&app, &behind, "success").await?;
    let ids: Vec<String> = receiver
        .requests("/hook")
        .iter()
        .map(|request| request.webhook_id().to_owned())
        .collect();
    ensure!(
        ids == [message.clone(), behind.clone()],
        "{ids:?} arrived, not {message} and {behind}"
    );
    Ok(())
}

#[tokio::test]
async fn kill_9_of_a_gateway_at_random_moments() -> Result<()> {
    killed_at_random("gateway").await
}

#[tokio::test]
async fn kill_9_of_a_worker_at_random_moments() -> Result<()> {
    killed_at_random("worker").await
}

#[tokio::test]
async fn kill_9_of_a_ledger_at_random_moments() -> Result<()> {
    killed_at_random("ledger").await
}

async fn killed_at_random(role: &str) -> Result<()> {
    let (lease, time) = SHORT_LEASE;
    let shared = Shared::on_shared_services().await?;
    let stack = Stack::scaled_on(shared, Shape::SMALL, |builder| builder.env(lease, time)).await?;
    let verdict = kill_three_times(stack, role).await?;
    judge(&verdict, role != "worker")
}

#[tokio::test]
async fn kill_9_of_the_embedded_process_at_random_moments() -> Result<()> {
    let verdict = kill_three_times(Stack::embedded().await?, "gateway").await?;
    judge(&verdict, false)
}

async fn kill_three_times(mut stack: Stack, role: &str) -> Result<Verdict> {
    let api = stack.api();
    let scene = Scene::new(&api).await?;
    let load = scene.load(std::slice::from_ref(&api));
    for _ in 0..3 {
        load.progress(30, SOON).await?;
        let moment = LOOK + Duration::from_millis(rand::rng().random_range(0..1_000));
        say(&format!("killed after another {moment:?}"));
        tokio::time::sleep(moment).await;
        let process = stack.of_role(role);
        process.kill9();
        process.start_again().await?;
    }
    load.progress(30, SOON).await?;
    load.finish().await?;
    scene.settle(&api, role).await
}

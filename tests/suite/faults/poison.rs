//! A delivery that kills every worker that tries it, among others: in an envelope, or in the one process of the embedded
//! set-up.

use anyhow::{Result, ensure};
use postrider_testkit::receiver::Receiver;
use postrider_testkit::services::free_port;
use postrider_testkit::wait::{Poll, wait_for};
use serde_json::{Value, json};

use super::{LOOK, say};
use crate::api::Api;
use crate::stack::{SOON, Shape, Shared, Stack};

/// More deaths than it takes to split an envelope and to park what is left.
const DEATHS_MAX: usize = 20;

#[tokio::test]
async fn a_worker_that_crashes_on_one_delivery_of_an_envelope() -> Result<()> {
    crashes_on_one_delivery(Shared::on_shared_services().await?).await
}

#[tokio::test]
async fn a_worker_that_crashes_on_one_delivery_while_redis_is_away() -> Result<()> {
    let mut shared = Shared::on_shared_services().await?;
    shared.redis = format!("redis://127.0.0.1:{}", free_port()?);
    crashes_on_one_delivery(shared).await
}

async fn crashes_on_one_delivery(shared: Shared) -> Result<()> {
    // One shard, so that all deliveries of a message share an envelope.
    let mut stack = Stack::scaled_on(shared, Shape::SMALL, |builder| {
        builder
            .env("POSTRIDER_BROKER__SHARDS", "1")
            .env("POSTRIDER_FAILPOINT", "worker.before_post@/poison")
    })
    .await?;
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    let healthy = ["/a", "/b", "/c", "/d", "/e"];
    for path in healthy {
        api.endpoint(&app, &receiver.url(path)).await?;
    }
    let poisoned = api.endpoint(&app, &receiver.url("/poison")).await?;
    let message = api.send(&app, json!({"n": 1})).await?;

    let deaths = die_until_parked(&mut stack, &api).await?;
    say(&format!("parked after {deaths} deaths"));
    ensure!(
        deaths >= 5,
        "a worker may be killed by something else; {deaths} deaths are no proof"
    );
    for path in healthy {
        receiver
            .wait_for(path, SOON, |requests| {
                requests.iter().any(|r| r.webhook_id() == message)
            })
            .await?;
    }
    wait_states(&api, &app, &message, &poisoned, healthy.len() + 1).await?;
    // More than one row if it came twice, but of one delivery.
    let parked = api.get("/parked").await?;
    let rows: &[Value] = parked["data"].as_array().map_or(&[], Vec::as_slice);
    let alike = |row: &Value| row["kind"] == "job" && row["reason"] == rows[0]["reason"];
    ensure!(!rows.is_empty() && rows.iter().all(alike), "{parked}");
    ensure!(receiver.count("/poison") == 0, "the poisoned delivery was sent");
    // The queue is free: what comes next is delivered by the same worker.
    let pid = stack.workers[0].pid();
    deliver_another(&api, &app, &poisoned, &receiver, &healthy).await?;
    ensure!(stack.workers[0].pid() == pid, "the worker died again");
    Ok(())
}

#[tokio::test]
async fn an_embedded_process_that_crashes_on_one_delivery() -> Result<()> {
    let mut stack =
        Stack::embedded_with(|builder| builder.env("POSTRIDER_FAILPOINT", "worker.before_post@/poison"))
            .await?;
    let receiver = Receiver::start().await?;
    let app = stack.api().app().await?;
    let healthy = ["/a", "/b", "/c"];
    for path in healthy {
        stack.api().endpoint(&app, &receiver.url(path)).await?;
    }
    let poisoned = stack.api().endpoint(&app, &receiver.url("/poison")).await?;
    // The process may die before its answer is out; the message is there all the same, once.
    let message = stack.api().send(&app, json!({"n": 1})).await;
    let deaths = restart_until_parked(&mut stack).await?;
    say(&format!("parked after {deaths} deaths"));
    ensure!(deaths == 5, "parked after {deaths} deaths");
    let api = stack.api();
    for path in healthy {
        receiver
            .wait_for(path, SOON, |requests| !requests.is_empty())
            .await?;
    }
    ensure!(receiver.count("/poison") == 0, "the poisoned delivery was sent");
    let parked = api.get("/parked").await?;
    let rows: &[Value] = parked["data"].as_array().map_or(&[], Vec::as_slice);
    ensure!(rows.len() == 1 && rows[0]["kind"] == "job", "{parked}");
    if let Ok(message) = &message {
        wait_states(&api, &app, message, &poisoned, healthy.len() + 1).await?;
    }
    // It lives on.
    let pid = stack.gateways[0].pid();
    deliver_another(&api, &app, &poisoned, &receiver, &healthy).await?;
    ensure!(stack.gateways[0].pid() == pid, "it died again");
    Ok(())
}

/// Without the endpoint that kills, a message gets to each of the others.
async fn deliver_another(
    api: &Api,
    app: &str,
    poisoned: &str,
    receiver: &Receiver,
    healthy: &[&str],
) -> Result<()> {
    api.patch(
        &format!("/app/{app}/endpoint/{poisoned}"),
        &json!({"disabled": true}),
    )
    .await?;
    let next = api.send(app, json!({"n": 2})).await?;
    for path in healthy {
        receiver
            .wait_for(path, SOON, |requests| {
                requests.iter().any(|r| r.webhook_id() == next)
            })
            .await?;
    }
    Ok(())
}

/// Starts the process again each time it dies, until something is parked; returns how often it died.
async fn restart_until_parked(stack: &mut Stack) -> Result<usize> {
    for death in 0..=DEATHS_MAX {
        let api = stack.api();
        let process = &mut stack.gateways[0];
        let what = format!("death {death} of the process, or a parked delivery");
        let parked = wait_for(&what, SOON, async || {
            if process.wait_exit(LOOK).await.is_ok() {
                return Ok(Poll::Ready(false));
            }
            // An error means that it is dying.
            let parked = api.get("/parked").await.unwrap_or_default();
            let is_parked = parked["data"].as_array().is_some_and(|rows| !rows.is_empty());
            Ok(if is_parked {
                Poll::Ready(true)
            } else {
                Poll::NotYet("neither".to_owned())
            })
        })
        .await?;
        if parked {
            return Ok(death);
        }
        // An error means that it died again before it was ready.
        let _ = process.start_again().await;
    }
    let log = stack.gateways[0].log();
    anyhow::bail!("not parked after {DEATHS_MAX} deaths:\n{log}")
}

/// Starts the worker again each time it dies, until something is parked; returns how often it died.
async fn die_until_parked(stack: &mut Stack, api: &Api) -> Result<usize> {
    for death in 0..=DEATHS_MAX {
        let worker = &mut stack.workers[0];
        let parked = wait_for(
            &format!("death {death} of the worker, or a parked delivery"),
            SOON,
            async || {
                let parked = api.get("/parked").await?;
                if parked["data"].as_array().is_some_and(|rows| !rows.is_empty()) {
                    return Ok(Poll::Ready(true));
                }
                let died = worker.wait_exit(LOOK).await.is_ok();
                Ok(if died {
                    Poll::Ready(false)
                } else {
                    Poll::NotYet("neither".to_owned())
                })
            },
        )
        .await?;
        if parked {
            return Ok(death);
        }
        // An error means that it died again before it was ready.
        let _ = worker.start_again().await;
    }
    let log = stack.workers[0].log();
    anyhow::bail!("not parked after {DEATHS_MAX} deaths:\n{log}")
}

/// The poisoned delivery is cancelled (2), the others have succeeded (0).
async fn wait_states(api: &Api, app: &str, message: &str, poisoned: &str, deliveries: usize) -> Result<()> {
    wait_for("the states of the deliveries", SOON, async || {
        let answer = api.get(&format!("/app/{app}/msg/{message}/endpoint")).await?;
        let rows: &[Value] = answer["data"].as_array().map_or(&[], Vec::as_slice);
        let right = |row: &Value| row["status"] == if row["id"] == *poisoned { 2 } else { 0 };
        let done = rows.len() == deliveries && rows.iter().all(right);
        Ok(if done {
            Poll::Ready(())
        } else {
            Poll::NotYet(answer.to_string())
        })
    })
    .await
}

//! Redis stopped, frozen, emptied: deliveries continue, limits fall back to a local share, and both are seen.

use std::time::Duration;

use anyhow::{Result, ensure};
use postrider_testkit::process::Postrider;
use postrider_testkit::receiver::Receiver;
use postrider_testkit::wait::{Poll, wait_for};
use serde_json::json;
use tokio::time::Instant;

use super::{Scene, Servers, metric, pids, say, wait_health, with_metrics};
use crate::stack::{SOON, Stack};

const FALLBACKS: &str = "postrider_limits_fallback_total";

#[tokio::test]
async fn redis_stopped_frozen_and_flushed_under_load() -> Result<()> {
    let mut servers = Servers::start().await?;
    let mut stack = servers.stack().await?;
    let metrics = with_metrics_each(&mut stack).await?;
    let before = pids(&mut stack);
    let api = stack.api();
    let scene = Scene::new(&api).await?;
    let load = scene.load(std::slice::from_ref(&api));
    load.progress(50, SOON).await?;
    servers.redis.flush().await?;
    load.progress(50, SOON).await?;

    servers.redis.stop().await?;
    wait_health(&stack.gateways[0], "limits", "down", true, SOON).await?;
    load.progress(50, SOON).await?;
    scene.arrivals(150, SOON).await?;
    for (url, role) in metrics.iter().zip(["gateway", "worker"]) {
        ensure!(
            metric(url, FALLBACKS).await? > 0.0,
            "the {role} does not count its fall-backs"
        );
    }
    for process in [&stack.gateways[0], &stack.workers[0]] {
        ensure!(
            tells_fallback(process),
            "no log line tells that the limits are local"
        );
    }
    servers.redis.start_again().await?;
    wait_health(&stack.gateways[0], "limits", "up", true, SOON).await?;
    load.progress(50, SOON).await?;

    servers.redis.pause()?;
    load.progress(50, SOON).await?;
    scene.arrivals(150, SOON).await?;
    servers.redis.resume()?;
    servers.redis.flush().await?;
    load.progress(50, SOON).await?;
    ensure!(
        load.refusals().is_empty(),
        "losing Redis costs no message: {load}"
    );
    load.finish().await?;
    scene.settle(&api, "Redis lost").await?;
    ensure!(pids(&mut stack) == before, "a process was restarted");
    Ok(())
}

#[tokio::test]
async fn a_process_with_nothing_to_do_notices_that_redis_is_back() -> Result<()> {
    let mut servers = Servers::start().await?;
    let mut stack = servers.stack().await?;
    let metrics = with_metrics_each(&mut stack).await?;
    let api = stack.api();
    let scene = Scene::new(&api).await?;
    let load = scene.load(std::slice::from_ref(&api));
    servers.redis.stop().await?;
    for url in &metrics {
        degraded(url, 1.0).await?;
    }
    load.finish().await?;
    scene.settle(&api, "Redis away").await?;
    servers.redis.start_again().await?;
    for url in &metrics {
        degraded(url, 0.0).await?;
    }
    Ok(())
}

/// Waits until a process says so.
async fn degraded(metrics: &str, wanted: f64) -> Result<()> {
    wait_for("the gauge of local limits", SOON, async || {
        let found = metric(metrics, "postrider_limits_degraded").await?;
        Ok(if (found - wanted).abs() < f64::EPSILON {
            Poll::Ready(())
        } else {
            Poll::NotYet(format!("{metrics}: {found}"))
        })
    })
    .await
}

/// Starts each process again with a metrics page; their URLs, in the order of [`Stack::processes_mut`].
async fn with_metrics_each(stack: &mut Stack) -> Result<Vec<String>> {
    let mut urls = vec![];
    for process in stack.processes_mut() {
        urls.push(with_metrics(process)?);
        process.start_again().await?;
    }
    Ok(urls)
}

fn tells_fallback(process: &Postrider) -> bool {
    process
        .log()
        .lines()
        .any(|line| line.contains("WARN") && line.contains("answering locally"))
}

/// 40 a second for the endpoint. Without Redis a process takes a quarter of it; here the worker and the scheduler
/// hand out deliveries, so at most half of it is used, and never more than the whole.
#[tokio::test]
async fn a_rate_falls_back_to_a_local_share() -> Result<()> {
    let mut servers = Servers::start().await?;
    let stack = servers.stack().await?;
    let api = stack.api();
    let limited = json!({"throttleRate": 40});
    let scene = Scene::with(&api, Receiver::start().await?, &["/limited"], &limited).await?;
    servers.redis.stop().await?;
    wait_health(&stack.gateways[0], "limits", "down", true, SOON).await?;
    let load = scene.load(std::slice::from_ref(&api));
    let from = Instant::now();
    // Several times as many as it may get.
    load.progress(600, SOON).await?;
    let to = Instant::now();
    let arrived: Vec<Instant> = scene
        .receiver
        .requests("/limited")
        .iter()
        .map(|request| request.at)
        .collect();
    let most = most_within_a_second(&arrived);
    say(&format!(
        "{} in {:?} without Redis, at most {most} within a second",
        arrived.len(),
        to - from
    ));
    ensure!(most <= 40, "{most} within a second: the limit is gone with Redis");
    ensure!(
        arrived.len() >= 10,
        "only {} arrived: the share is not used",
        arrived.len()
    );
    load.finish().await?;
    servers.redis.start_again().await?;
    scene.settle(&api, "limited without Redis").await?;
    Ok(())
}

fn most_within_a_second(times: &[Instant]) -> usize {
    let from = |start: &Instant| {
        times
            .iter()
            .filter(|at| *at >= start && **at < *start + Duration::from_secs(1))
            .count()
    };
    times.iter().map(from).max().unwrap_or_default()
}

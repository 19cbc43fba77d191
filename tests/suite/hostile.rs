//! Hostile receivers: each ends inside its deadline with a typed, recorded attempt, and memory stays flat.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use postrider_testkit::process::Postrider;
use postrider_testkit::receiver::{Receiver, Reply, Script};
use postrider_testkit::wait::{Poll, wait_for};
use serde_json::{Value, json};

use crate::api::Api;
use crate::stack::{SOON, Shape, Shared, Stack};
use crate::watch::Watched;

/// How many of each kind at once.
const EACH: usize = 20;
const TIMEOUT_S: u64 = 2;
/// A deadline that passed, with room for a busy machine.
const TIMED_OUT_MS: std::ops::Range<u64> = 1_900..3_500;
const GROWTH_MAX: u64 = 64 << 20;

#[tokio::test]
async fn hostile_responses_end_in_time_and_cost_no_memory_scaled_out() -> Result<()> {
    let mut stack = workerless().await?;
    let worker = Watched::worker(&mut stack, &[]).await?;
    hostile(&stack.api(), &worker).await
}

#[tokio::test]
async fn hostile_responses_end_in_time_and_cost_no_memory_embedded() -> Result<()> {
    let (process, watched) = Watched::start(Postrider::builder()).await?;
    hostile(&Api::new(&process.url(), &process.admin_key().await?), &watched).await
}

async fn workerless() -> Result<Stack> {
    let shape = Shape {
        workers: 0,
        ..Shape::SMALL
    };
    let allow = "127.0.0.0/8,::1/128,169.254.0.0/16";
    Stack::scaled_on(Shared::on_shared_services().await?, shape, |builder| {
        builder.env("POSTRIDER_EGRESS__ALLOW", allow)
    })
    .await
}

async fn hostile(api: &Api, worker: &Watched) -> Result<()> {
    let receiver = Receiver::start().await?;
    receiver.on("/drip", Script::always(Reply::Drip(Duration::from_secs(1))));
    receiver.on("/large", Script::always(Reply::Large(1 << 30)));
    receiver.on("/hang", Script::always(Reply::Hang));
    receiver.on(
        "/redirect",
        Script::always(Reply::Redirect(receiver.url("/away"))),
    );
    // Warm: the first deliveries allocate what stays.
    one_of_each(api, &receiver).await?;
    let before = worker.memory()?;
    try_join_all((0..EACH).map(|_| one_of_each(api, &receiver))).await?;
    let grown = worker.memory()?.saturating_sub(before);
    ensure!(grown < GROWTH_MAX, "memory grew by {} MiB", grown >> 20);
    ensure!(receiver.count("/away") == 0, "a redirect was followed");
    Ok(())
}

/// One message to an endpoint of each kind.
async fn one_of_each(api: &Api, receiver: &Receiver) -> Result<()> {
    let app = api.app().await?;
    let mut endpoints = vec![];
    for path in ["/drip", "/hang", "/redirect", "/large"] {
        let body = json!({"url": receiver.url(path), "timeoutSeconds": TIMEOUT_S, "retrySchedule": []});
        endpoints.push(api.endpoint_with(&app, body).await?);
    }
    let message = api.send(&app, json!({})).await?;
    let [drip, hang, redirect, large] = [0, 1, 2, 3].map(|n: usize| &endpoints[n]);

    for endpoint in [drip, hang] {
        let attempt = attempt(api, &app, &message, endpoint).await?;
        let took_ms = attempt["responseDurationMs"].as_u64().context("no duration")?;
        ensure!(TIMED_OUT_MS.contains(&took_ms), "it took {took_ms} ms: {attempt}");
        ensure!(
            attempt["responseStatusCode"] == 0 && attempt["statusText"] == "fail",
            "{attempt}"
        );
        ensure!(text(&attempt).contains("no response in time"), "{attempt}");
    }
    let attempt_at = async |endpoint| attempt(api, &app, &message, endpoint).await;
    let redirected = attempt_at(redirect).await?;
    ensure!(
        redirected["responseStatusCode"] == 302 && redirected["statusText"] == "fail",
        "{redirected}"
    );
    let large = attempt_at(large).await?;
    // What was read in time decides; the rest is not read.
    ensure!(large["responseStatusCode"] == 200, "{large}");
    ensure!(large["responseDurationMs"].as_u64().context("no duration")? < TIMED_OUT_MS.start);
    ensure!(
        text(&large).len() <= 4096,
        "{} bytes were kept",
        text(&large).len()
    );
    Ok(())
}

/// The only attempt of a message at an endpoint, once it is recorded.
async fn attempt(api: &Api, app: &str, message: &str, endpoint: &str) -> Result<Value> {
    let path = format!("/app/{app}/attempt/msg/{message}?endpoint_id={endpoint}");
    wait_for("an attempt", SOON, async || {
        let answer = api.call(reqwest::Method::GET, &path, None).await?;
        Ok(match answer.body["data"].as_array().map(Vec::as_slice) {
            Some([attempt]) => Poll::Ready(attempt.clone()),
            _ => Poll::NotYet(format!("{} {}", answer.status, answer.body)),
        })
    })
    .await
}

fn text(attempt: &Value) -> &str {
    attempt["response"].as_str().unwrap_or_default()
}

/// The policy is the worker's too: what a laxer gateway let in does not go out.
#[tokio::test]
async fn private_addresses_are_blocked_where_the_request_is_made() -> Result<()> {
    let mut stack = workerless().await?;
    // Not even loopback, so that `localhost` is a name with private addresses only.
    let settings = [("POSTRIDER_EGRESS__ALLOW", "192.0.2.0/24")];
    Watched::worker(&mut stack, &settings).await?;
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    let port = receiver.address().port();
    let urls = [
        "http://169.254.169.254/latest/meta-data".to_owned(),
        format!("http://localhost:{port}/hook"),
        receiver.url("/hook"),
    ];
    let mut endpoints = vec![];
    for url in &urls {
        let body = json!({"url": url, "timeoutSeconds": TIMEOUT_S, "retrySchedule": []});
        endpoints.push(api.endpoint_with(&app, body).await?);
    }
    let message = api.send(&app, json!({})).await?;
    for endpoint in &endpoints {
        let attempt = attempt(&api, &app, &message, endpoint).await?;
        ensure!(
            attempt["responseStatusCode"] == 0 && attempt["statusText"] == "fail",
            "{attempt}"
        );
        let reason = text(&attempt);
        ensure!(
            ["allowed", "private", "loopback", "link-local", "public"]
                .iter()
                .any(|word| reason.contains(word)),
            "the reason is not named: {attempt}"
        );
    }
    ensure!(receiver.total() == 0, "a blocked request went out");
    Ok(())
}

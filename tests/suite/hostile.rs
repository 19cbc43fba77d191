//! Hostile receivers: each ends inside its deadline with a typed, recorded attempt, and memory stays flat.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use postrider_testkit::name_server::{Answer, NameServer};
use postrider_testkit::process::{Builder, Postrider};
use postrider_testkit::receiver::{Receiver, Reply, Script};
use serde_json::{Value, json};

use crate::api::Api;
use crate::stack::{Shape, Shared, Stack};
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
    let mut attempts = api.wait_attempts(app, message, endpoint, 1).await?;
    attempts.pop().context("an attempt")
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
        blocked(&attempt(&api, &app, &message, endpoint).await?, "the address")?;
    }
    ensure!(receiver.total() == 0, "a blocked request went out");
    Ok(())
}

/// The attempt failed because the policy refuses this address.
fn blocked(attempt: &Value, address: &str) -> Result<()> {
    ensure!(
        attempt["responseStatusCode"] == 0 && attempt["statusText"] == "fail",
        "{attempt}"
    );
    let reason = text(attempt);
    ensure!(
        reason.contains(address) && reason.contains("is not public"),
        "the reason is not named: {attempt}"
    );
    Ok(())
}

#[tokio::test]
async fn a_name_that_flips_to_a_private_address_is_blocked_each_time_scaled_out() -> Result<()> {
    let names = NameServer::start().await?;
    let shared = Shared::on_shared_services().await?;
    let stack = Stack::scaled_on(shared, Shape::SMALL, |builder| flipping(&names, builder)).await?;
    flips(&stack, &names).await
}

#[tokio::test]
async fn a_name_that_flips_to_a_private_address_is_blocked_each_time_embedded() -> Result<()> {
    let names = NameServer::start().await?;
    let stack = Stack::embedded_with(|builder| flipping(&names, builder)).await?;
    flips(&stack, &names).await
}

fn flipping(names: &NameServer, builder: Builder) -> Builder {
    builder
        .env("POSTRIDER_EGRESS__NAME_SERVERS", names.address().to_string())
        // So that no attempt takes a connection that was made, and judged, for the one before.
        .env("POSTRIDER_EGRESS__IDLE_TIMEOUT", "1s")
}

/// Loopback is exempt and plays the public address. The schedule leaves the resolver the time to forget.
async fn flips(stack: &Stack, names: &NameServer) -> Result<()> {
    const HOST: &str = "flips.test";
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    receiver.on(
        "/hook",
        Script::sequence([Reply::Status(500), Reply::Status(200)]),
    );
    let app = api.app().await?;
    let url = format!("http://{HOST}:{}/hook", receiver.address().port());
    let schedule = json!({"url": url, "timeoutSeconds": TIMEOUT_S, "retrySchedule": [8, 8, 8, 8]});
    let endpoint = api.endpoint_with(&app, schedule).await?;
    let public: IpAddr = Ipv4Addr::LOCALHOST.into();
    let told = [
        vec![public],
        vec![[169, 254, 169, 254].into()],
        vec![[10, 0, 0, 7].into()],
        // The mapped form of the same, and the unique local range.
        vec!["::ffff:10.0.0.8".parse()?, "fd00::9".parse()?],
        vec![public],
    ];
    names.on(HOST, Answer::Addresses(told[0].clone()));
    let message = api.send(&app, json!({})).await?;
    for (made, addresses) in told.iter().enumerate().skip(1) {
        api.wait_attempts(&app, &message, &endpoint, made).await?;
        names.on(HOST, Answer::Addresses(addresses.clone()));
    }
    let mut made = api.wait_attempts(&app, &message, &endpoint, told.len()).await?;
    made.reverse();
    let status = |attempt: usize| made[attempt]["responseStatusCode"].clone();
    ensure!(status(0) == 500 && status(4) == 200, "{made:#?}");
    blocked(&made[1], "169.254.169.254")?;
    blocked(&made[2], "10.0.0.7")?;
    blocked(&made[3], "")?;
    ensure!(receiver.total() == 2, "{} requests came", receiver.total());
    api.wait_status(&app, &message, "success").await
}

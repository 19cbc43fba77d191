//! `ordered` endpoints: what was accepted before another was sent arrives before it, whatever fails.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use postrider_testkit::receiver::{Receiver, Recorded, Reply, Script};
use postrider_testkit::wait::{Poll, wait_for};
use serde_json::json;
use tokio::time::Instant;

use crate::api::Api;
use crate::stack::{SOON, Shape, Stack};
use crate::watch::times;

/// A message: its id, when its sending began, when it was acknowledged.
struct Sent {
    id: String,
    began: Instant,
    acknowledged: Instant,
}

macro_rules! on_both_set_ups {
    ($($scenario:ident => $embedded:ident, $scaled:ident;)*) => {$(
        #[tokio::test]
        async fn $embedded() -> Result<()> {
            $scenario(&Stack::embedded().await?).await
        }

        #[tokio::test]
        async fn $scaled() -> Result<()> {
            // Two of each: the order must not lean on there being one.
            $scenario(&Stack::scaled(Shape { gateways: 2, workers: 2, ledgers: 2 }).await?).await
        }
    )*};
}

on_both_set_ups! {
    in_order => an_ordered_endpoint_keeps_the_order_of_acceptance_embedded,
        an_ordered_endpoint_keeps_the_order_of_acceptance_scaled_out;
    at_pace => an_ordered_endpoint_goes_at_its_receivers_pace_embedded,
        an_ordered_endpoint_goes_at_its_receivers_pace_scaled_out;
    exhausted => an_exhausted_head_is_skipped_or_pauses_the_endpoint_embedded,
        an_exhausted_head_is_skipped_or_pauses_the_endpoint_scaled_out;
}

/// Four producers, each on a gateway in turn, send as fast as they get answers.
async fn produce(stack: &Stack, app: &str, each: usize) -> Result<Vec<Sent>> {
    let producers = (0..4).map(|producer| async move {
        let mut sent = vec![];
        for n in 0..each {
            let api = stack.api_of((producer + n) % stack.gateways.len());
            let began = Instant::now();
            let id = api.send(app, json!({"producer": producer, "n": n})).await?;
            sent.push(Sent {
                id,
                began,
                acknowledged: Instant::now(),
            });
        }
        anyhow::Ok(sent)
    });
    Ok(try_join_all(producers).await?.into_iter().flatten().collect())
}

async fn in_order(stack: &Stack) -> Result<()> {
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    receiver.on(
        "/ordered",
        Script::always(Reply::Status(200)).failing(0.2, 500, 11),
    );
    let app = api.app().await?;
    let url = receiver.url("/ordered");
    let schedule = [1, 1, 1, 1, 1, 1];
    api.endpoint_with(
        &app,
        json!({"url": url, "ordered": true, "retrySchedule": schedule}),
    )
    .await?;
    api.endpoint(&app, &receiver.url("/other")).await?;
    let sent = produce(stack, &app, 25).await?;

    // Head-of-line retries take a second each; they do not hold up another endpoint of the same messages.
    receiver
        .wait_for("/other", SOON, |requests| requests.len() == sent.len())
        .await?;
    let done = receiver.with_requests("/ordered", |requests| first_successes(requests).len());
    ensure!(
        done < sent.len(),
        "the ordered endpoint was done first; nothing was shown"
    );
    let requests = receiver
        .wait_for("/ordered", SOON * 2, |requests| {
            first_successes(requests).len() == sent.len()
        })
        .await?;
    ensure!(
        requests.iter().any(|request| !request.succeeded()),
        "no request failed; nothing was shown"
    );
    let place = first_successes(&requests);
    for earlier in &sent {
        for later in sent.iter().filter(|later| earlier.acknowledged < later.began) {
            ensure!(
                place[&earlier.id] < place[&later.id],
                "{} was acknowledged before {} was sent, and arrived after it",
                earlier.id,
                later.id
            );
        }
    }
    Ok(())
}

/// Each message's place among the successful requests.
fn first_successes(requests: &[Recorded]) -> HashMap<String, usize> {
    let mut places = HashMap::new();
    for request in requests.iter().filter(|request| request.succeeded()) {
        let next = places.len();
        places.entry(request.webhook_id().to_owned()).or_insert(next);
    }
    places
}

async fn at_pace(stack: &Stack) -> Result<()> {
    const LATENCY: Duration = Duration::from_millis(30);
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    receiver.on("/ordered", Script::always(Reply::Status(200)).delay(LATENCY));
    let app = api.app().await?;
    let waiting = json!({"url": receiver.url("/ordered"), "ordered": true, "paused": true});
    let endpoint = api.endpoint_with(&app, waiting).await?;
    let sent = produce(stack, &app, 75).await?;
    // Recorded in the order of acceptance, so each producer's last one stands for all.
    for message in sent.chunks(75).filter_map(<[Sent]>::last) {
        api.wait_status(&app, &message.id, "pending").await?;
    }
    api.patch(
        &format!("/app/{app}/endpoint/{endpoint}"),
        &json!({"paused": false}),
    )
    .await?;
    let requests = receiver
        .wait_for("/ordered", SOON, |requests| requests.len() == sent.len())
        .await?;
    ensure!(
        receiver.peak_in_flight("/ordered") == 1,
        "two were in flight at once"
    );
    let times = times(&requests);
    let took = *times.last().context("requests")? - times[0];
    let ideal = LATENCY * u32::try_from(sent.len())?;
    ensure!(took < ideal * 2, "{took:?} for what the receiver needs {ideal:?}");
    Ok(())
}

async fn exhausted(stack: &Stack) -> Result<()> {
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    // One retry, so two failures exhaust the head.
    let failing = || Script::sequence([Reply::Status(500), Reply::Status(500)]);
    receiver.on("/skip", failing());
    receiver.on("/pause", failing());
    let app = api.app().await?;
    let skip = json!({"url": receiver.url("/skip"), "ordered": true, "retrySchedule": [1]});
    api.endpoint_with(&app, skip).await?;
    let pause = json!({
        "url": receiver.url("/pause"), "ordered": true, "retrySchedule": [1], "onExhausted": "pause"
    });
    let pausing = api.endpoint_with(&app, pause).await?;
    let first = api.send(&app, json!({"n": 1})).await?;
    let second = api.send(&app, json!({"n": 2})).await?;

    let ids = |requests: &[Recorded]| -> Vec<String> {
        requests.iter().map(|r| r.webhook_id().to_owned()).collect()
    };
    let skipped = receiver
        .wait_for("/skip", SOON, |requests| requests.len() == 3)
        .await?;
    ensure!(ids(&skipped) == [first.clone(), first.clone(), second.clone()]);

    wait_for("the endpoint to be paused", SOON, async || {
        let endpoint = api.get(&format!("/app/{app}/endpoint/{pausing}")).await?;
        Ok(if endpoint["paused"] == true {
            Poll::Ready(())
        } else {
            Poll::NotYet(endpoint.to_string())
        })
    })
    .await?;
    still_waiting(&api, &app, &second, &pausing).await?;
    ensure!(ids(&receiver.requests("/pause")) == [first.clone(), first.clone()]);
    api.patch(
        &format!("/app/{app}/endpoint/{pausing}"),
        &json!({"paused": false}),
    )
    .await?;
    let resumed = receiver
        .wait_for("/pause", SOON, |requests| requests.len() == 3)
        .await?;
    ensure!(ids(&resumed)[2] == second);
    Ok(())
}

/// The delivery of a message to an endpoint is pending, and no attempt was made.
async fn still_waiting(api: &Api, app: &str, message: &str, endpoint: &str) -> Result<()> {
    let body = api.get(&format!("/app/{app}/msg/{message}/endpoint")).await?;
    let rows = body["data"].as_array().context("no deliveries")?;
    let row = rows
        .iter()
        .find(|row| row["id"] == endpoint)
        .with_context(|| format!("not listed: {body}"))?;
    ensure!(row["statusText"] == "pending", "{row}");
    Ok(())
}

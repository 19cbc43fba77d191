//! A rate limit holds over several workers, in both directions: never more, and while something waits hardly less.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use postrider_testkit::oracle::Oracle;
use postrider_testkit::receiver::Receiver;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use crate::api::Api;
use crate::stack::{SOON, Shape, Stack};
use crate::watch::{least_within, most_within, times};

const RATE: u32 = 50;
const MESSAGES: usize = 1_000;
/// Messages of one request, and the time between two requests: 500 messages a second.
const BATCH: usize = 25;
const BATCH_EVERY: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_rate_limited_endpoint_gets_its_rate_from_three_workers() -> Result<()> {
    let shape = Shape {
        workers: 3,
        ..Shape::SMALL
    };
    paced(&Stack::scaled(shape).await?).await
}

#[tokio::test]
async fn a_rate_limited_endpoint_gets_its_rate_embedded() -> Result<()> {
    paced(&Stack::embedded().await?).await
}

async fn paced(stack: &Stack) -> Result<()> {
    let (api, receiver, oracle) = (stack.api(), Receiver::start().await?, Oracle::new());
    let app = api.app().await?;
    let url = receiver.url("/hook");
    api.endpoint_with(&app, json!({"url": url, "throttleRate": RATE}))
        .await?;
    feed(&api, &app, &oracle, &url).await?;
    let verdict = oracle.settle(&[&receiver], SOON * 2).await?;
    ensure!(verdict.duplicates == 0, "{verdict}");

    let times = receiver.with_requests("/hook", times);
    let (first, last) = (times[0], *times.last().context("requests")?);
    let settled = first + Duration::from_secs(1);
    let most = most_within(&times, settled, Duration::from_secs(1));
    ensure!(most <= 55, "{most} requests in one second");
    // As long as more than a window is to come there is a backlog.
    let least = least_within(&times, settled, last, Duration::from_secs(5)).context("too short")?;
    ensure!(least >= 225, "only {least} requests in 5 s while others waited");
    Ok(())
}

/// Sends 500 messages a second for two seconds, by the clock.
async fn feed(api: &Api, app: &str, oracle: &Oracle, url: &str) -> Result<()> {
    let start = Instant::now();
    let batches = (0..MESSAGES / BATCH).map(|batch| async move {
        sleep_until(start + BATCH_EVERY * u32::try_from(batch)?).await;
        let payloads: Vec<_> = (0..BATCH).map(|n| json!({"n": batch * BATCH + n})).collect();
        let ids = api.batch(app, &payloads).await?;
        for (id, payload) in ids.iter().zip(&payloads) {
            oracle.acknowledged(id, payload.to_string().as_bytes(), [url]);
        }
        anyhow::Ok(())
    });
    stream::iter(batches)
        .buffer_unordered(MESSAGES / BATCH)
        .try_collect()
        .await
}

//! What every delivery is: signed, retried, recorded; on both set-ups.

use std::time::Duration;

use anyhow::{Result, ensure};
use postrider_signature::{SigningSecret, Verifier};
use postrider_testkit::oracle::Oracle;
use postrider_testkit::receiver::{Receiver, Reply, Script};
use reqwest::Method;
use serde_json::json;

use crate::stack::{SOON, Shape, Stack};

/// Runs a scenario on the embedded and on the scaled-out set-up.
macro_rules! on_both_set_ups {
    ($($name:ident => $embedded:ident, $scaled:ident;)*) => {$(
        #[tokio::test]
        async fn $embedded() -> Result<()> {
            $name(&Stack::embedded().await?).await
        }

        #[tokio::test]
        async fn $scaled() -> Result<()> {
            $name(&Stack::scaled(Shape::SMALL).await?).await
        }
    )*};
}

on_both_set_ups! {
    signed => a_delivery_is_signed_and_recorded_embedded, a_delivery_is_signed_and_recorded_scaled_out;
    retried => a_failure_is_retried_by_the_schedule_embedded, a_failure_is_retried_by_the_schedule_scaled_out;
    many => a_thousand_messages_to_three_endpoints_embedded, a_thousand_messages_to_three_endpoints_scaled_out;
    paused => a_paused_endpoint_keeps_its_deliveries_embedded, a_paused_endpoint_keeps_its_deliveries_scaled_out;
    raw => raw_bytes_arrive_as_they_came_embedded, raw_bytes_arrive_as_they_came_scaled_out;
}

async fn signed(stack: &Stack) -> Result<()> {
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    let endpoint = api.endpoint(&app, &receiver.url("/hook")).await?;
    let message = api.send(&app, json!({"n": 1})).await?;
    let requests = receiver
        .wait_for("/hook", SOON, |requests| requests.len() == 1)
        .await?;
    let request = &requests[0];
    ensure!(
        request.webhook_id() == message,
        "another id: {}",
        request.webhook_id()
    );
    ensure!(
        request.body.as_ref() == br#"{"n":1}"#,
        "the body was changed: {:?}",
        request.body
    );

    let secret = api.get(&format!("/app/{app}/endpoint/{endpoint}/secret")).await?;
    let secret = SigningSecret::parse(secret["key"].as_str().unwrap_or_default())?;
    let timestamp_s: i64 = request.header("webhook-timestamp").unwrap_or_default().parse()?;
    let signature = request.header("webhook-signature").unwrap_or_default();
    Verifier::new([secret]).verify(&message, timestamp_s, signature, &request.body, timestamp_s, 300)?;
    api.wait_status(&app, &message, "success").await?;
    let attempts = api.get(&format!("/app/{app}/attempt/msg/{message}")).await?;
    ensure!(attempts["data"][0]["responseStatusCode"] == 200, "{attempts}");
    Ok(())
}

async fn retried(stack: &Stack) -> Result<()> {
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    receiver.on(
        "/hook",
        Script::sequence([Reply::Status(500), Reply::Status(404)]),
    );
    let app = api.app().await?;
    let endpoint = json!({"url": receiver.url("/hook"), "retrySchedule": [1, 1, 1]});
    api.endpoint_with(&app, endpoint).await?;
    let message = api.send(&app, json!({})).await?;
    let requests = receiver
        .wait_for("/hook", SOON, |requests| requests.len() == 3)
        .await?;
    ensure!(
        requests.iter().all(|request| request.webhook_id() == message),
        "the id changed"
    );
    ensure!(
        requests[1].at - requests[0].at >= Duration::from_millis(700),
        "the retry came too soon"
    );
    api.wait_status(&app, &message, "success").await?;
    let attempts = api.get(&format!("/app/{app}/attempt/msg/{message}")).await?;
    let statuses: Vec<_> = attempts["data"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|a| &a["responseStatusCode"])
        .collect();
    ensure!(statuses == [200, 404, 500], "newest first: {attempts}");
    Ok(())
}

async fn many(stack: &Stack) -> Result<()> {
    let (api, receiver, oracle) = (stack.api(), Receiver::start().await?, Oracle::new());
    let app = api.app().await?;
    let urls = ["/a", "/b", "/c"].map(|path| receiver.url(path));
    for url in &urls {
        api.endpoint(&app, url).await?;
    }
    let sends = (0..1_000).map(|n| {
        let (api, app, oracle, urls) = (&api, &app, &oracle, &urls);
        async move {
            let payload = json!({"n": n});
            let message = api.send(app, payload.clone()).await?;
            oracle.acknowledged(&message, payload.to_string().as_bytes(), urls);
            anyhow::Ok(())
        }
    });
    use futures_util::{StreamExt, TryStreamExt, stream};
    stream::iter(sends)
        .buffer_unordered(32)
        .try_collect::<Vec<_>>()
        .await?;
    let verdict = oracle.settle(&[&receiver], SOON).await?;
    ensure!(
        verdict.duplicates == 0,
        "nothing failed, so nothing may be doubled: {verdict}"
    );
    Ok(())
}

async fn paused(stack: &Stack) -> Result<()> {
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    let endpoint = api.endpoint(&app, &receiver.url("/hook")).await?;
    api.patch(
        &format!("/app/{app}/endpoint/{endpoint}"),
        &json!({"paused": true}),
    )
    .await?;
    let mut messages = vec![];
    for n in 0..5 {
        messages.push(api.send(&app, json!({"n": n})).await?);
    }
    for message in &messages {
        api.wait_status(&app, message, "pending").await?;
    }
    ensure!(
        receiver.count("/hook") == 0,
        "a paused endpoint was sent something"
    );
    api.patch(
        &format!("/app/{app}/endpoint/{endpoint}"),
        &json!({"paused": false}),
    )
    .await?;
    receiver
        .wait_for("/hook", SOON, |requests| requests.len() == 5)
        .await?;
    Ok(())
}

async fn raw(stack: &Stack) -> Result<()> {
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    api.endpoint(&app, &receiver.url("/hook")).await?;
    let bytes = b"<a>\0\xff \xe9</a>".to_vec();
    let answer = api
        .raw(&app, "test.event", "application/xml", bytes.clone())
        .await?;
    ensure!(answer.status == 202, "{answer:?}");
    let requests = receiver
        .wait_for("/hook", SOON, |requests| requests.len() == 1)
        .await?;
    ensure!(requests[0].body == bytes && requests[0].header("content-type") == Some("application/xml"));
    let answer = api.call(Method::GET, &format!("/app/{app}/msg"), None).await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

//! From one machine to many: `postrider move` takes an embedded store to Postgres, and everything goes on there.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postrider_signature::{SigningSecret, Verifier};
use postrider_testkit::process::{Builder, Postrider};
use postrider_testkit::receiver::{Receiver, Recorded, Reply, Script};
use postrider_testkit::wait::{Poll, wait_for};
use reqwest::Method;
use serde_json::json;

use crate::api::Api;
use crate::cli;
use crate::stack::{SOON, Shape, Shared, Stack};

const DRAIN: Duration = Duration::from_secs(60);

/// What the embedded process left behind.
struct Before {
    receiver: Receiver,
    app: String,
    /// Delivered before the move.
    delivered: String,
    /// Answered 503 before the move, and retried soon.
    failed: Vec<String>,
    /// For a paused endpoint.
    paused_endpoint: String,
    paused: Vec<String>,
    /// For an `ordered` endpoint that is paused: three, in this order.
    ordered_endpoint: String,
    ordered: Vec<String>,
    secret: String,
}

fn no_breaker(builder: Builder) -> Builder {
    builder.env("POSTRIDER_DELIVERY__BREAKER_FAILURES", "1000")
}

#[tokio::test]
async fn an_embedded_store_moves_to_postgres() -> Result<()> {
    let data = tempfile::tempdir()?;
    let mut embedded = no_breaker(Postrider::builder())
        .data_dir(data.path())
        .start()
        .await?;
    let key = embedded.admin_key().await?;
    let before = Before::make(&Api::new(&embedded.url(), &key)).await?;

    let shared = Shared::on_shared_services().await?;
    let from = data.path().to_str().context("a path in UTF-8")?;
    let command = ["move", "--from", from];
    let env = shared.settings();
    let refused = cli::refused(&command, &env).await?;
    ensure!(refused.contains("is in use"), "{refused}");

    let status = embedded.terminate(DRAIN).await?;
    ensure!(status.success(), "it ended with {status}");
    let said = cli::run(&command, &env).await?;
    for line in [
        "applications",
        "endpoints",
        "messages",
        "attempts",
        "waiting deliveries",
        "moved.",
    ] {
        ensure!(said.contains(line), "nothing about {line}: {said}");
    }
    let again = cli::refused(&command, &env).await?;
    ensure!(again.contains("not empty"), "{again}");

    let stack = Stack::scaled_on(shared, Shape::SMALL, no_breaker).await?;
    // The key that the embedded process made works here as well.
    before.check(&Api::new(&stack.gateways[0].url(), &key)).await
}

#[tokio::test]
async fn a_move_needs_a_store_and_a_target() -> Result<()> {
    let data = tempfile::tempdir()?;
    let from = data.path().to_str().context("a path in UTF-8")?;
    let said = cli::refused(&["move", "--from", from], &[]).await?;
    ensure!(said.contains("POSTRIDER_STORE__URL"), "{said}");
    let shared = Shared::on_shared_services().await?;
    let said = cli::refused(&["move", "--from", from], &shared.settings()).await?;
    ensure!(said.contains("there is no store"), "{said}");
    ensure!(
        !Path::new(from).join("secrets.key").exists(),
        "a refused move made a key"
    );
    Ok(())
}

impl Before {
    async fn make(api: &Api) -> Result<Self> {
        let receiver = Receiver::start().await?;
        receiver.on("/down", Script::always(Reply::Status(503)));
        api.post(
            "/event-type",
            &json!({"name": "test.event", "description": "moved"}),
        )
        .await?;
        let app = api.app().await?;
        let fine = json!({"url": receiver.url("/fine"), "uid": "fine", "headers": {"x-kept": "yes"}});
        let endpoint = api.endpoint_with(&app, fine).await?;
        let delivered = api.send(&app, json!({"n": "delivered"})).await?;
        receiver
            .wait_for("/fine", SOON, |requests| requests.len() == 1)
            .await?;
        api.wait_status(&app, &delivered, "success").await?;
        let secret = api.get(&format!("/app/{app}/endpoint/{endpoint}/secret")).await?;
        let gone = api.endpoint(&app, &receiver.url("/gone")).await?;
        let answer = api
            .call(Method::DELETE, &format!("/app/{app}/endpoint/{gone}"), None)
            .await?;
        ensure!(answer.status.is_success(), "{answer:?}");

        let down = json!({"url": receiver.url("/down"), "retrySchedule": vec![3; 20]});
        api.endpoint_with(&app, down).await?;
        let held = |path: &str, ordered: bool| json!({"url": receiver.url(path), "paused": true, "ordered": ordered, "channels": [path.trim_start_matches('/')]});
        let paused_endpoint = api.endpoint_with(&app, held("/paused", false)).await?;
        let ordered_endpoint = api.endpoint_with(&app, held("/ordered", true)).await?;
        let mut failed = vec![];
        for n in 0..3 {
            failed.push(api.send(&app, json!({"n": n})).await?);
        }
        let (mut paused, mut ordered) = (vec![], vec![]);
        for n in 0..3 {
            paused.push(send_to(api, &app, "paused", n).await?);
            ordered.push(send_to(api, &app, "ordered", n).await?);
        }
        let before = Self {
            receiver,
            app,
            delivered,
            failed,
            paused_endpoint,
            paused,
            ordered_endpoint,
            ordered,
            secret: secret["key"].as_str().unwrap_or_default().to_owned(),
        };
        // Each of the failing ones has been tried, so that attempts move too.
        let tried = |requests: &[Recorded]| {
            let ids: std::collections::HashSet<_> =
                requests.iter().map(|r| r.webhook_id().to_owned()).collect();
            before.failed.iter().all(|id| ids.contains(id))
        };
        before.receiver.wait_for("/down", SOON, tried).await?;
        before.counts(api, &before.paused_endpoint, "pending", 3).await?;
        before.counts(api, &before.ordered_endpoint, "pending", 3).await?;
        Ok(before)
    }

    /// Waits until so many deliveries of an endpoint are on record in this state.
    async fn counts(&self, api: &Api, endpoint: &str, state: &str, count: u64) -> Result<()> {
        wait_for(&format!("{count} {state} deliveries"), SOON, async || {
            let stats = api
                .get(&format!("/app/{}/endpoint/{endpoint}/stats", self.app))
                .await?;
            Ok(if stats[state] == count {
                Poll::Ready(())
            } else {
                Poll::NotYet(stats.to_string())
            })
        })
        .await
    }

    /// Everything is readable, what waited is delivered, and receivers notice nothing.
    async fn check(&self, api: &Api) -> Result<()> {
        let (app, receiver) = (&self.app, &self.receiver);
        let message = api.get(&format!("/app/{app}/msg/{}", self.delivered)).await?;
        ensure!(message["payload"] == json!({"n": "delivered"}), "{message}");
        let attempts = api
            .get(&format!("/app/{app}/attempt/msg/{}", self.delivered))
            .await?;
        ensure!(
            attempts["data"]
                .as_array()
                .is_some_and(|rows| rows.iter().any(|row| row["responseStatusCode"] == 200)),
            "{attempts}"
        );
        let event_type = api.get("/event-type/test.event").await?;
        ensure!(event_type["description"] == "moved", "{event_type}");
        let endpoints = api.get(&format!("/app/{app}/endpoint")).await?;
        ensure!(
            endpoints["data"].as_array().is_some_and(|rows| rows.len() == 4),
            "{endpoints}"
        );
        let secret = api.get(&format!("/app/{app}/endpoint/fine/secret")).await?;
        ensure!(secret["key"] == self.secret, "the secret changed");
        // Messages of channels go to endpoints without channels too.
        self.counts(api, "fine", "success", 10).await?;

        receiver.on("/down", Script::always(Reply::Status(200)));
        for endpoint in [&self.paused_endpoint, &self.ordered_endpoint] {
            api.patch(
                &format!("/app/{app}/endpoint/{endpoint}"),
                &json!({"paused": false}),
            )
            .await?;
        }
        let came = receiver
            .wait_for("/paused", SOON, |requests| requests.len() >= 3)
            .await?;
        let mut ids: Vec<String> = came
            .iter()
            .map(|request| request.webhook_id().to_owned())
            .collect();
        ids.sort();
        let mut wanted = self.paused.clone();
        wanted.sort();
        ensure!(ids == wanted, "{ids:?}, not {wanted:?}");
        let came = receiver
            .wait_for("/ordered", SOON, |requests| requests.len() >= 3)
            .await?;
        let ids: Vec<String> = came
            .iter()
            .map(|request| request.webhook_id().to_owned())
            .collect();
        ensure!(ids == self.ordered, "{ids:?}, not {:?}", self.ordered);
        for id in &self.failed {
            api.wait_status(app, id, "success").await?;
        }

        // The sequence of ordered endpoints goes on, and what is new is signed as before.
        let next = send_to(api, app, "ordered", 3).await?;
        receiver
            .wait_for("/ordered", SOON, |requests| requests.len() == 4)
            .await?;
        let came = receiver
            .wait_for("/fine", SOON, |requests| {
                requests.iter().any(|r| r.webhook_id() == next)
            })
            .await?;
        let request = came
            .iter()
            .find(|request| request.webhook_id() == next)
            .context("the new one")?;
        ensure!(request.header("x-kept") == Some("yes"), "{request:?}");
        let timestamp_s: i64 = request.header("webhook-timestamp").unwrap_or_default().parse()?;
        let signature = request.header("webhook-signature").unwrap_or_default();
        let secret = SigningSecret::parse(&self.secret)?;
        Verifier::new([secret]).verify(&next, timestamp_s, signature, &request.body, timestamp_s, 300)?;
        Ok(())
    }
}

/// Sends a message to a channel of its own.
async fn send_to(api: &Api, app: &str, channel: &str, n: usize) -> Result<String> {
    let body = json!({"eventType": "test.event", "channels": [channel], "payload": {"n": n}});
    crate::api::id_of(&api.post(&format!("/app/{app}/msg"), &body).await?)
}

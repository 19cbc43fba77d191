//! Changes reach what is queued already; endpoints that say stop are heeded; keys and event ids hold over gateways.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use postrider_signature::{SigningSecret, Verifier};
use postrider_testkit::process::Postrider;
use postrider_testkit::receiver::{Receiver, Recorded, Reply, Script};
use postrider_testkit::wait::{Poll, wait_for};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::api::{Api, id_of};
use crate::stack::{SOON, Shape, Shared, Stack};
use crate::watch::{Watched, times};

const MESSAGES: usize = 5;

/// An endpoint with messages that a frozen worker has in its queue or in its hands.
struct Queued {
    stack: Stack,
    api: Api,
    receiver: Receiver,
    app: String,
    endpoint: String,
    messages: Vec<String>,
}

impl Queued {
    async fn new() -> Result<Self> {
        let stack = Stack::scaled(Shape::SMALL).await?;
        let (api, receiver) = (stack.api(), Receiver::start().await?);
        let app = api.app().await?;
        let endpoint = api.endpoint(&app, &receiver.url("/old")).await?;
        // The worker knows the old configuration well.
        api.send(&app, json!({"n": "first"})).await?;
        receiver
            .wait_for("/old", SOON, |requests| requests.len() == 1)
            .await?;
        stack.workers[0].pause()?;
        let payloads = vec![json!({}); MESSAGES];
        let messages = api.batch(&app, &payloads).await?;
        Ok(Self {
            stack,
            api,
            receiver,
            app,
            endpoint,
            messages,
        })
    }

    fn path(&self) -> String {
        format!("/app/{}/endpoint/{}", self.app, self.endpoint)
    }

    fn thaw(&self) -> Result<()> {
        self.stack.workers[0].resume()
    }

    /// What arrived after the thaw.
    async fn arrivals(&self, path: &str, count: usize) -> Result<Vec<Recorded>> {
        self.receiver
            .wait_for(path, SOON, |requests| requests.len() == count)
            .await
    }

    /// Waits until all queued deliveries are in this state, and checks that none went out.
    async fn none_went_out(&self, status: &str) -> Result<()> {
        for message in &self.messages {
            self.api.wait_status(&self.app, message, status).await?;
        }
        ensure!(self.receiver.count("/old") == 1, "one went out all the same");
        Ok(())
    }
}

#[tokio::test]
async fn a_new_url_and_header_reach_what_is_queued() -> Result<()> {
    let queued = Queued::new().await?;
    let headers = json!({"headers": {"x-tenant": "blue"}});
    queued
        .api
        .patch(&format!("{}/headers", queued.path()), &headers)
        .await?;
    let url = json!({"url": queued.receiver.url("/new")});
    queued.api.patch(&queued.path(), &url).await?;
    queued.thaw()?;
    let requests = queued.arrivals("/new", MESSAGES).await?;
    ensure!(
        requests
            .iter()
            .all(|request| request.header("x-tenant") == Some("blue"))
    );
    ensure!(queued.receiver.count("/old") == 1, "one went to the old URL");
    Ok(())
}

#[tokio::test]
async fn a_new_secret_reaches_what_is_queued() -> Result<()> {
    let queued = Queued::new().await?;
    let path = format!("{}/secret", queued.path());
    let old = queued.api.get(&path).await?["key"].clone();
    queued.api.post(&format!("{path}/rotate"), &json!({})).await?;
    let new = queued.api.get(&path).await?["key"].clone();
    ensure!(old != new, "the secret is the same");
    queued.thaw()?;
    let requests = queued.arrivals("/old", 1 + MESSAGES).await?;
    for request in &requests[1..] {
        // The old one signs too, for a time of grace.
        for secret in [&new, &old] {
            verify(request, secret.as_str().context("no key")?)?;
        }
    }
    verify(&requests[0], new.as_str().context("no key")?)
        .err()
        .context("the first was signed before the rotation")?;
    Ok(())
}

fn verify(request: &Recorded, secret: &str) -> Result<()> {
    let timestamp_s: i64 = request.header("webhook-timestamp").unwrap_or_default().parse()?;
    let signature = request.header("webhook-signature").unwrap_or_default();
    let verifier = Verifier::new([SigningSecret::parse(secret)?]);
    verifier.verify(
        request.webhook_id(),
        timestamp_s,
        signature,
        &request.body,
        timestamp_s,
        300,
    )?;
    Ok(())
}

#[tokio::test]
async fn a_pause_reaches_what_is_queued_and_keeps_it() -> Result<()> {
    let queued = Queued::new().await?;
    queued.api.patch(&queued.path(), &json!({"paused": true})).await?;
    queued.thaw()?;
    // Sent after the others to the same endpoint: once it waits too, the worker has seen them all.
    queued.none_went_out("pending").await?;
    queued
        .api
        .patch(&queued.path(), &json!({"paused": false}))
        .await?;
    queued.arrivals("/old", 1 + MESSAGES).await?;
    Ok(())
}

#[tokio::test]
async fn a_disabled_endpoint_gets_nothing_of_what_is_queued() -> Result<()> {
    let queued = Queued::new().await?;
    queued
        .api
        .patch(&queued.path(), &json!({"disabled": true}))
        .await?;
    queued.thaw()?;
    queued.none_went_out("fail").await
}

#[tokio::test]
async fn a_deleted_endpoint_gets_nothing_of_what_is_queued() -> Result<()> {
    let queued = Queued::new().await?;
    let answer = queued.api.call(Method::DELETE, &queued.path(), None).await?;
    ensure!(answer.status == StatusCode::NO_CONTENT, "{answer:?}");
    queued.thaw()?;
    // The API shows deliveries of living endpoints only, so the store is asked.
    let shared = queued.stack.shared.as_ref().context("scaled out")?;
    let pool = sqlx::PgPool::connect(&shared.postgres).await?;
    wait_for("the deliveries to be cancelled", SOON, async || {
        let cancelled: i64 =
            sqlx::query_scalar("SELECT count(*) FROM deliveries WHERE cancelled IS NOT NULL")
                .fetch_one(&pool)
                .await?;
        Ok(if usize::try_from(cancelled)? == MESSAGES {
            Poll::Ready(())
        } else {
            Poll::NotYet(format!("{cancelled} of {MESSAGES}"))
        })
    })
    .await?;
    ensure!(queued.receiver.count("/old") == 1, "one went out all the same");
    Ok(())
}

#[tokio::test]
async fn a_change_that_nobody_announced_reaches_the_worker() -> Result<()> {
    let stack = Stack::scaled(Shape::SMALL).await?;
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    api.endpoint(&app, &receiver.url("/old")).await?;
    api.send(&app, json!({})).await?;
    receiver
        .wait_for("/old", SOON, |requests| requests.len() == 1)
        .await?;
    // As by a gateway that ended right after the commit: Redis keeps the version from before.
    let shared = stack.shared.as_ref().context("scaled out")?;
    let mut store = sqlx::PgConnection::connect(&shared.postgres).await?;
    sqlx::query("UPDATE endpoints SET url = $1")
        .bind(receiver.url("/new"))
        .execute(&mut store)
        .await?;
    sqlx::query("UPDATE applications SET version = version + 1")
        .execute(&mut store)
        .await?;
    wait_for("a delivery to the new URL", SOON, async || {
        api.send(&app, json!({})).await?;
        Ok(if receiver.count("/new") > 0 {
            Poll::Ready(())
        } else {
            Poll::NotYet(format!("{} to the old one", receiver.count("/old")))
        })
    })
    .await
}

#[tokio::test]
async fn gone_disables_and_cancels_what_waits_scaled_out() -> Result<()> {
    gone(&Stack::scaled(Shape::SMALL).await?).await
}

#[tokio::test]
async fn gone_disables_and_cancels_what_waits_embedded() -> Result<()> {
    gone(&Stack::embedded().await?).await
}

async fn gone(stack: &Stack) -> Result<()> {
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    receiver.on("/hook", Script::always(Reply::Status(410)));
    let app = api.app().await?;
    let body = json!({"url": receiver.url("/hook"), "throttleRate": 1});
    let endpoint = api.endpoint_with(&app, body).await?;
    let payloads = vec![json!({}); 10];
    let messages = api.batch(&app, &payloads).await?;
    wait_for("the endpoint to be disabled", SOON, async || {
        let endpoint = api.get(&format!("/app/{app}/endpoint/{endpoint}")).await?;
        Ok(if endpoint["disabled"] == true {
            Poll::Ready(())
        } else {
            Poll::NotYet(endpoint.to_string())
        })
    })
    .await?;
    for message in &messages {
        api.wait_status(&app, message, "fail").await?;
    }
    // At one a second, ten would take nine seconds more.
    let tried = receiver.count("/hook");
    ensure!(tried <= 5, "{tried} of 10 were tried at an endpoint that is gone");
    Ok(())
}

#[tokio::test]
async fn retry_after_holds_back_the_whole_endpoint_scaled_out() -> Result<()> {
    pushed_back(&Stack::scaled(Shape::SMALL).await?).await
}

#[tokio::test]
async fn retry_after_holds_back_the_whole_endpoint_embedded() -> Result<()> {
    pushed_back(&Stack::embedded().await?).await
}

async fn pushed_back(stack: &Stack) -> Result<()> {
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    for (path, status) in [("/busy", 429), ("/away", 503)] {
        receiver.on(path, Script::sequence([Reply::RetryAfter(status, 4)]));
        let app = api.app().await?;
        let body = json!({"url": receiver.url(path), "retrySchedule": [1, 1, 1]});
        let endpoint = api.endpoint_with(&app, body).await?;
        let first = api.send(&app, json!({"n": 0})).await?;
        // Once it is on record that it was tried, the limits know.
        api.wait_attempts(&app, &first, &endpoint, 1).await?;
        let payloads = vec![json!({}); 3];
        api.batch(&app, &payloads).await?;
        let requests = receiver
            .wait_for(path, SOON, |requests| requests.len() == 5)
            .await?;
        let earliest = requests[1..]
            .iter()
            .map(|request| request.at)
            .min()
            .context("requests")?;
        let held = earliest - requests[0].at;
        ensure!(
            held >= Duration::from_millis(3_900),
            "{path}: the next came after {held:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_breaker_lets_one_probe_at_a_time_through_and_closes_again() -> Result<()> {
    let shape = Shape {
        workers: 0,
        ..Shape::SMALL
    };
    let open = [("POSTRIDER_DELIVERY__BREAKER_OPEN", "1s")];
    let mut stack = Stack::scaled_on(Shared::on_shared_services().await?, shape, |builder| {
        builder.env(open[0].0, open[0].1)
    })
    .await?;
    let worker = Watched::worker(&mut stack, &open).await?;
    breaks(&stack.api(), &worker).await
}

#[tokio::test]
async fn a_breaker_lets_one_probe_at_a_time_through_embedded() -> Result<()> {
    let builder = Postrider::builder().env("POSTRIDER_DELIVERY__BREAKER_OPEN", "1s");
    let (process, watched) = Watched::start(builder).await?;
    breaks(&Api::new(&process.url(), &process.admin_key().await?), &watched).await
}

async fn breaks(api: &Api, worker: &Watched) -> Result<()> {
    const FAILURES: usize = 10;
    let receiver = Receiver::start().await?;
    receiver.on("/hook", Script::always(Reply::Status(500)));
    let app = api.app().await?;
    let body = json!({"url": receiver.url("/hook"), "retrySchedule": vec![1; 20]});
    api.endpoint_with(&app, body).await?;
    let payloads = vec![json!({}); 40];
    let messages = api.batch(&app, &payloads).await?;
    worker.reaches("postrider_breaker_opened_total", 1.0).await?;
    // Two probes, the second after twice the time.
    let probes = |requests: &[Recorded]| quiet_times(requests).len();
    let requests = receiver
        .wait_for("/hook", SOON, |requests| probes(requests) >= 3)
        .await?;
    let gaps = quiet_times(&requests);
    ensure!(gaps[0].0 >= FAILURES, "it opened after {} failures", gaps[0].0);
    ensure!(
        gaps[1].0 == gaps[0].0 + 1 && gaps[2].0 == gaps[1].0 + 1,
        "more than a probe passed: {gaps:?}"
    );
    ensure!(
        gaps[1].1 > Duration::from_millis(1_500) && gaps[2].1 > Duration::from_secs(3),
        "it did not wait twice as long after a failed probe: {gaps:?}"
    );
    receiver.on("/hook", Script::always(Reply::Status(200)));
    for message in &messages {
        api.wait_status(&app, message, "success").await?;
    }
    Ok(())
}

/// How many requests came before each pause of 800 ms or more, and how long it was.
fn quiet_times(requests: &[Recorded]) -> Vec<(usize, Duration)> {
    let times = times(requests);
    let gaps = times.windows(2).enumerate();
    gaps.map(|(index, pair)| (index + 1, pair[1] - pair[0]))
        .filter(|(_, gap)| *gap >= Duration::from_millis(800))
        .collect()
}

/// A request to send one message, under an idempotency key.
async fn keyed(api: &Api, app: &str, body: &Value, key: &str) -> Result<crate::api::Answer> {
    let path = format!("/app/{app}/msg");
    api.call_with(Method::POST, &path, Some(body), &[("idempotency-key", key)])
        .await
}

#[tokio::test]
async fn one_key_makes_one_message_over_two_gateways() -> Result<()> {
    let stack = Stack::scaled(Shape {
        gateways: 2,
        ..Shape::SMALL
    })
    .await?;
    once(&[stack.api_of(0), stack.api_of(1)]).await
}

#[tokio::test]
async fn one_key_makes_one_message_embedded() -> Result<()> {
    let stack = Stack::embedded().await?;
    once(&[stack.api(), stack.api()]).await
}

async fn once(apis: &[Api; 2]) -> Result<()> {
    let receiver = Receiver::start().await?;
    let app = apis[0].app().await?;
    apis[0].endpoint(&app, &receiver.url("/hook")).await?;
    let body = json!({"eventType": "test.event", "payload": {"n": 1}});
    let calls = (0..20).map(|n| keyed(&apis[n % 2], &app, &body, "key-1"));
    let answers = try_join_all(calls).await?;
    let mut ids = vec![];
    for answer in &answers {
        ensure!(answer.status == StatusCode::ACCEPTED, "{answer:?}");
        ids.push(id_of(&answer.body)?);
    }
    ensure!(ids.iter().all(|id| *id == ids[0]), "several messages: {ids:?}");
    let other = json!({"eventType": "test.event", "payload": {"n": 2}});
    for api in apis {
        let answer = keyed(api, &app, &other, "key-1").await?;
        ensure!(answer.status == StatusCode::UNPROCESSABLE_ENTITY, "{answer:?}");
    }
    taken_event_id(apis, &app).await?;
    // Two messages were accepted; a third to mark the end.
    let last = apis[0].send(&app, json!({"n": "last"})).await?;
    let requests = receiver
        .wait_for("/hook", SOON, |requests| requests.len() >= 3)
        .await?;
    apis[0].wait_status(&app, &last, "success").await?;
    let of_key = requests
        .iter()
        .filter(|request| request.webhook_id() == ids[0])
        .count();
    ensure!(of_key == 1 && receiver.count("/hook") == 3, "{requests:#?}");
    Ok(())
}

/// An event id is taken once, whichever gateway is asked.
async fn taken_event_id(apis: &[Api; 2], app: &str) -> Result<()> {
    let path = format!("/app/{app}/msg");
    let body = json!({"eventType": "test.event", "eventId": "evt-1", "payload": {}});
    let calls = (0..10).map(|n| apis[n % 2].call(Method::POST, &path, Some(&body)));
    let answers = try_join_all(calls).await?;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    let (accepted, refused) = (count(StatusCode::ACCEPTED), count(StatusCode::CONFLICT));
    ensure!(
        (accepted, refused) == (1, 9),
        "{accepted} accepted, {refused} refused: {answers:?}"
    );
    Ok(())
}

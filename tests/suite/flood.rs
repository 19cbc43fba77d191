//! One application floods: the others keep their turns, and a quota turns its excess away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::{join_all, try_join_all};
use postrider_testkit::oracle::Oracle;
use postrider_testkit::receiver::{Receiver, Reply, Script};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use crate::api::{Api, id_of};
use crate::stack::{SOON, Shape, Shared, Stack};

const QUIET: usize = 5;
/// What each quiet application sends, one every half second.
const QUIET_MESSAGES: u32 = 12;
const QUIET_EVERY: Duration = Duration::from_millis(500);
/// Ten times what all the quiet ones send together.
const FLOOD_MESSAGES: usize = 600;
/// The flood may go first this often: a turn of each of the others, what is on its way already, and what the
/// worker had taken in before it learnt that the flood's queue is too long (a second's worth).
const TURNS: usize = 40;

#[tokio::test]
async fn a_flood_does_not_delay_other_applications_by_more_than_some_turns() -> Result<()> {
    let settings =
        |builder: postrider_testkit::process::Builder| builder.env("POSTRIDER_DELIVERY__MAX_IN_FLIGHT", "1");
    let stack = Stack::scaled_on(Shared::on_shared_services().await?, Shape::SMALL, settings).await?;
    turns(&stack).await
}

#[tokio::test]
async fn a_flood_does_not_delay_other_applications_embedded() -> Result<()> {
    let stack = Stack::embedded_with(|builder| builder.env("POSTRIDER_DELIVERY__MAX_IN_FLIGHT", "1")).await?;
    turns(&stack).await
}

/// A worker with a single slot takes 20 deliveries a second; 110 a second come in.
async fn turns(stack: &Stack) -> Result<()> {
    let (api, receiver, oracle) = (stack.api(), Receiver::start().await?, Oracle::new());
    let slow = || Script::always(Reply::Status(200)).delay(Duration::from_millis(50));
    receiver.on("/flood", slow());
    let flood_app = api.app().await?;
    api.endpoint(&flood_app, &receiver.url("/flood")).await?;
    let mut quiet_apps = vec![];
    for n in 0..QUIET {
        let path = format!("/quiet{n}");
        receiver.on(&path, slow());
        let app = api.app().await?;
        api.endpoint(&app, &receiver.url(&path)).await?;
        quiet_apps.push((app, path));
    }

    let start = Instant::now();
    let flooding = flood(&api, &flood_app, &receiver, &oracle, start);
    let quiet = try_join_all(
        quiet_apps
            .iter()
            .map(|(app, path)| calm(&api, app, path, &receiver, start)),
    );
    let (flooded, quiet) = tokio::join!(flooding, quiet);
    flooded?;
    for (path, message, accepted) in quiet?.into_iter().flatten() {
        let requests = receiver
            .wait_for(&path, SOON, |requests| {
                requests.iter().any(|request| request.webhook_id() == message)
            })
            .await?;
        let arrived = requests.iter().find(|request| request.webhook_id() == message);
        let arrived = arrived.context("it was there")?.at;
        let before = receiver.with_requests("/flood", |requests| {
            requests
                .iter()
                .filter(|request| request.at > accepted && request.at < arrived)
                .count()
        });
        ensure!(
            before <= TURNS,
            "{before} deliveries of the flood came before one of {path}"
        );
    }
    ensure!(
        receiver.count("/flood") < FLOOD_MESSAGES,
        "the flood was over before anything was shown"
    );
    // Nothing of the flood is lost either.
    receiver.on("/flood", Script::always(Reply::Status(200)));
    oracle.settle(&[&receiver], SOON).await?;
    Ok(())
}

async fn flood(api: &Api, app: &str, receiver: &Receiver, oracle: &Oracle, start: Instant) -> Result<()> {
    let producers = (0..10_usize).map(|producer| async move {
        for n in 0..FLOOD_MESSAGES / 10 {
            // Each of ten producers sends ten a second.
            sleep_until(start + Duration::from_millis(100) * u32::try_from(n)?).await;
            let payload = json!({"producer": producer, "n": n});
            let message = api.send(app, payload.clone()).await?;
            oracle.acknowledged(&message, payload.to_string().as_bytes(), [receiver.url("/flood")]);
        }
        anyhow::Ok(())
    });
    try_join_all(producers).await?;
    Ok(())
}

/// Sends at a leisurely pace; returns path, message and when it was accepted.
async fn calm(
    api: &Api,
    app: &str,
    path: &str,
    receiver: &Receiver,
    start: Instant,
) -> Result<Vec<(String, String, Instant)>> {
    let mut sent = vec![];
    for n in 0..QUIET_MESSAGES {
        sleep_until(start + QUIET_EVERY * n).await;
        let message = api.send(app, json!({"n": n})).await?;
        sent.push((path.to_owned(), message, Instant::now()));
    }
    ensure!(receiver.unrecorded() == 0);
    Ok(sent)
}

#[tokio::test]
async fn a_quota_turns_the_excess_away_and_keeps_what_it_took() -> Result<()> {
    quota(&Stack::scaled(Shape::SMALL).await?).await
}

#[tokio::test]
async fn a_quota_turns_the_excess_away_embedded() -> Result<()> {
    quota(&Stack::embedded().await?).await
}

async fn quota(stack: &Stack) -> Result<()> {
    const QUOTA: usize = 20;
    let (api, receiver, oracle) = (stack.api(), Receiver::start().await?, Oracle::new());
    let app = id_of(
        &api.post("/app", &json!({"name": "limited", "throttleRate": QUOTA}))
            .await?,
    )?;
    api.endpoint(&app, &receiver.url("/hook")).await?;
    let start = Instant::now();
    let path = format!("/app/{app}/msg");
    let bodies: Vec<_> = (0..QUOTA * 10)
        .map(|n| json!({"eventType": "test.event", "payload": {"n": n}}))
        .collect();
    let answers = join_all(
        bodies
            .iter()
            .map(|body| api.call(Method::POST, &path, Some(body))),
    )
    .await;
    let most = QUOTA as f64 * (1.0 + start.elapsed().as_secs_f64());
    let mut accepted = 0_u32;
    for (answer, body) in answers.into_iter().zip(&bodies) {
        let answer = answer?;
        match answer.status {
            StatusCode::ACCEPTED => {
                accepted += 1;
                let body = body["payload"].to_string();
                oracle.acknowledged(&id_of(&answer.body)?, body.as_bytes(), [receiver.url("/hook")]);
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let seconds: u64 = answer.retry_after.context("no Retry-After")?.parse()?;
                ensure!((1..=60).contains(&seconds), "Retry-After: {seconds}");
            }
            status => anyhow::bail!("{status} {}", answer.body),
        }
    }
    ensure!(accepted >= 20, "only {accepted} were accepted");
    ensure!(
        f64::from(accepted) <= most.ceil(),
        "{accepted} were accepted, at most {most} may be"
    );
    let verdict = oracle.settle(&[&receiver], SOON).await?;
    ensure!(verdict.unacknowledged == 0, "{verdict}");
    Ok(())
}

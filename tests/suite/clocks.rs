//! A worker's clock and the store's are apart: leases are the store's, and only its clock says when they end.
//!
//! The store of each test is a database of its own, whose clock is a function; the test moves it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postrider_testkit::receiver::{Receiver, Recorded};
use postrider_testkit::wait::{Poll, wait_for};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::stack::{SOON, Shape, Shared, Stack};

/// The store's clock.
struct Clock(PgConnection);

impl Clock {
    async fn of(shared: &Shared) -> Result<Self> {
        let connection = PgConnection::connect(&shared.postgres).await;
        Ok(Self(connection.context("the test's own database")?))
    }

    /// Sets how far it is ahead of everybody else's.
    async fn ahead(&mut self, seconds: i32) -> Result<()> {
        let statement = format!(
            "CREATE OR REPLACE FUNCTION now_ms() RETURNS bigint LANGUAGE sql VOLATILE AS \
             $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint + 1000 * ({seconds}) $$"
        );
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut self.0)
            .await?;
        Ok(())
    }

    /// Waits until every waiting row was handed out so many times.
    async fn handed_out(&mut self, rows: i64, run: i64) -> Result<()> {
        let connection = tokio::sync::Mutex::new(&mut self.0);
        wait_for(&format!("{rows} rows in run {run}"), SOON, async || {
            let found: (i64, Option<i64>) = sqlx::query_as("SELECT count(*), min(run) FROM waiting")
                .fetch_one(&mut **connection.lock().await)
                .await?;
            Ok(if found == (rows, Some(run)) {
                Poll::Ready(())
            } else {
                Poll::NotYet(format!("{found:?}"))
            })
        })
        .await
    }
}

#[tokio::test]
async fn an_ordered_endpoint_is_served_by_a_worker_whose_clock_is_ahead() -> Result<()> {
    let shared = Shared::on_shared_services().await?;
    shared.migrate().await?;
    // Further than the longest lease of an ordered run.
    Clock::of(&shared).await?.ahead(-300).await?;
    let stack = Stack::scaled_on(shared, Shape::SMALL, |builder| builder).await?;
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    api.endpoint_with(&app, json!({"url": receiver.url("/ordered"), "ordered": true}))
        .await?;
    let mut sent = vec![];
    for n in 0..5 {
        sent.push(api.send(&app, json!({"n": n})).await?);
    }
    let requests = receiver
        .wait_for("/ordered", SOON, |requests| requests.len() >= sent.len())
        .await?;
    let arrived: Vec<&str> = requests.iter().map(Recorded::webhook_id).collect();
    ensure!(arrived == sent, "{arrived:?} instead of {sent:?}");
    Ok(())
}

#[tokio::test]
async fn what_was_handed_out_again_while_no_worker_ran_is_sent_once() -> Result<()> {
    const MESSAGES: usize = 3;
    let mut stack = Stack::scaled(Shape::SMALL).await?;
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    let endpoint = json!({"url": receiver.url("/hook"), "paused": true});
    let endpoint = api.endpoint_with(&app, endpoint).await?;
    let mut sent = vec![];
    for n in 0..MESSAGES {
        sent.push(api.send(&app, json!({"n": n})).await?);
    }
    let shared = stack.shared.as_ref().context("scaled out")?;
    let mut clock = Clock::of(shared).await?;
    let rows = i64::try_from(MESSAGES)?;
    clock.handed_out(rows, 0).await?;
    stack.workers[0].terminate(SOON).await?;
    api.patch(
        &format!("/app/{app}/endpoint/{endpoint}"),
        &json!({"paused": false}),
    )
    .await?;
    // Leases of 90, 180 and 360 s; each jump passes the end of the one before.
    clock.handed_out(rows, 1).await?;
    clock.ahead(100).await?;
    clock.handed_out(rows, 2).await?;
    clock.ahead(300).await?;
    clock.handed_out(rows, 3).await?;

    stack.workers[0].start_again().await?;
    for message in &sent {
        api.wait_status(&app, message, "success").await?;
    }
    // What it took is finished before it ends.
    stack.workers[0].terminate(SOON + Duration::from_secs(30)).await?;
    let mut arrived: Vec<String> = receiver
        .requests("/hook")
        .iter()
        .map(|request| request.webhook_id().to_owned())
        .collect();
    arrived.sort_unstable();
    sent.sort_unstable();
    ensure!(arrived == sent, "{arrived:?} instead of {sent:?}");
    Ok(())
}

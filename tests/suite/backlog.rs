//! 100,000 deliveries wait for a paused endpoint: nobody else notices, and they are drained in order, at the endpoint's
//! pace, to the last one and each once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use postrider_model::{
    Accepted, AppId, DeferReason, DeliveryId, Disposition, EndpointId, Message, MessageId, NewDelivery,
    Record, Trigger, UnixMillis,
};
use postrider_store::SharedStore;
use postrider_testkit::process::Postrider;
use postrider_testkit::receiver::{Receiver, Recorded};
use postrider_testkit::wait::{Poll, wait_for_every};
use serde_json::json;

use crate::api::Api;
use crate::stack::{SOON, Shape, Shared, Stack, embedded_store};
use crate::watch::{Queues, Watched, least_within, most_within, times};

const BATCHES: usize = 50;
const BATCH: usize = 2_000;
/// What the application is sent while its endpoint is paused, and again while it drains, joins the backlog.
const SENT: usize = 20;
const ALL: usize = BATCHES * BATCH + 2 * SENT;
/// Deliveries a second once it is resumed, and how many of them come before the limit is lifted.
const RATE: usize = 300;
const JUDGED: usize = 3_000;
/// Deliveries handed out at once.
const OUT: usize = 100;
/// How long the rest may take; how long it takes is the bench's business.
const DRAIN: Duration = Duration::from_secs(300);

#[tokio::test]
async fn a_backlog_costs_nobody_anything_and_drains_in_order_scaled_out() -> Result<()> {
    let shape = Shape {
        workers: 0,
        ..Shape::SMALL
    };
    let mut stack = Stack::scaled_on(Shared::on_shared_services().await?, shape, |builder| builder).await?;
    let worker = Watched::worker(&mut stack, &[]).await?;
    let backlog = Backlog::new(stack.api()).await?;
    let shared = stack.shared.as_ref().context("scaled out")?;
    backlog.seed(&shared.store()?).await?;

    let queues = Queues::connect(shared).await?;
    backlog.stands(&worker).await?;
    let kinds = ["deliver", "retry"];
    queues.wait_ready(shared, &kinds, 0, SOON).await?;
    backlog.resume().await?;
    let ready = queues.ready(shared, &kinds).await?;
    ensure!(
        usize::try_from(ready)? <= OUT,
        "{ready} frames stand in queues while it drains"
    );
    backlog.drains().await
}

#[tokio::test]
async fn a_backlog_costs_nobody_anything_and_drains_in_order_embedded() -> Result<()> {
    let data = tempfile::tempdir()?;
    let (mut process, watched) = Watched::start(Postrider::builder().data_dir(data.path())).await?;
    let api = Api::new(&process.url(), &process.admin_key().await?);
    let backlog = Backlog::new(api).await?;
    process.terminate(SOON).await?;
    backlog.seed(&embedded_store(data.path())?).await?;
    process.start_again().await?;
    backlog.stands(&watched).await?;
    backlog.resume().await?;
    backlog.drains().await
}

/// A paused endpoint with a rate limit, another of the same application, and one of another application.
struct Backlog {
    api: Api,
    receiver: Receiver,
    app: String,
    other: String,
    endpoint: String,
}

impl Backlog {
    async fn new(api: Api) -> Result<Self> {
        let receiver = Receiver::start().await?;
        let (app, other) = (api.app().await?, api.app().await?);
        let paused = json!({"url": receiver.url("/paused"), "paused": true, "throttleRate": RATE});
        let endpoint = api.endpoint_with(&app, paused).await?;
        api.endpoint(&app, &receiver.url("/same-app")).await?;
        api.endpoint(&other, &receiver.url("/other-app")).await?;
        Ok(Self {
            api,
            receiver,
            app,
            other,
            endpoint,
        })
    }

    /// Records accepted messages as the ledger would: each batch is due a little after the one before.
    async fn seed(&self, store: &SharedStore) -> Result<()> {
        let (app, endpoint) = (self.app.parse()?, self.endpoint.parse()?);
        for batch in 0..BATCHES {
            let records: Vec<Record> = (0..BATCH).map(|_| accepted(app, endpoint, batch)).collect();
            store.record(&records).await?;
        }
        Ok(())
    }

    async fn configure(&self, change: serde_json::Value) -> Result<()> {
        let path = format!("/app/{}/endpoint/{}", self.app, self.endpoint);
        self.api.patch(&path, &change).await?;
        Ok(())
    }

    /// Nobody notices that it is there, and nothing of it goes out.
    async fn stands(&self, worker: &Watched) -> Result<()> {
        self.others_get_theirs(SENT).await?;
        ensure!(self.receiver.count("/paused") == 0);
        let deferred = worker.metric("postrider_deliveries_deferred_total").await?;
        ensure!(deferred < 0.5, "{deferred} deliveries were deferred");
        Ok(())
    }

    /// Nobody notices either that it has begun to drain.
    async fn resume(&self) -> Result<()> {
        self.configure(json!({"paused": false})).await?;
        self.receiver
            .wait_for("/paused", SOON, |requests| !requests.is_empty())
            .await?;
        self.others_get_theirs(2 * SENT).await
    }

    /// At its pace first; then, without a limit, to the end.
    async fn drains(&self) -> Result<()> {
        let requests = self
            .receiver
            .wait_for("/paused", SOON, |requests| requests.len() >= JUDGED)
            .await?;
        at_pace(&requests[..JUDGED])?;
        self.configure(json!({"throttleRate": null})).await?;
        wait_for_every(
            Duration::from_millis(500),
            "the end of the backlog",
            DRAIN,
            async || {
                let path = format!("/app/{}/endpoint/{}/stats", self.app, self.endpoint);
                let stats = self.api.get(&path).await?;
                Ok(
                    if stats["success"] == ALL && stats["pending"] == 0 && stats["sending"] == 0 {
                        Poll::Ready(())
                    } else {
                        Poll::NotYet(stats.to_string())
                    },
                )
            },
        )
        .await?;
        self.receiver.with_requests("/paused", |requests| {
            let distinct: HashSet<&str> = requests.iter().map(Recorded::webhook_id).collect();
            ensure!(
                requests.len() == ALL && distinct.len() == ALL,
                "{} requests of {} messages, not one of each of {ALL}",
                requests.len(),
                distinct.len()
            );
            in_order(requests)
        })
    }

    /// Messages to two applications arrive at the endpoints that are not paused, whatever waits.
    async fn others_get_theirs(&self, total: usize) -> Result<()> {
        let payloads: Vec<_> = (0..SENT).map(|n| json!({"n": n})).collect();
        self.api.batch(&self.app, &payloads).await?;
        self.api.batch(&self.other, &payloads).await?;
        for path in ["/same-app", "/other-app"] {
            self.receiver
                .wait_for(path, SOON, |requests| requests.len() == total)
                .await?;
        }
        Ok(())
    }
}

/// In order of due time.
fn in_order(requests: &[Recorded]) -> Result<()> {
    for (place, request) in requests.iter().enumerate() {
        let body: serde_json::Value = serde_json::from_slice(&request.body)?;
        // What was sent meanwhile is due last.
        let batch = body["batch"].as_u64().map_or(Ok(BATCHES), usize::try_from)?;
        let (from, to) = (batch * BATCH, (batch + 1) * BATCH);
        // What is handed out together may arrive in any order.
        ensure!(
            from <= place + 2 * OUT && place < to + 2 * OUT,
            "number {place} to arrive was in batch {batch}"
        );
    }
    Ok(())
}

fn at_pace(requests: &[Recorded]) -> Result<()> {
    let times = times(requests);
    let settled = times[0] + Duration::from_secs(1);
    let most = most_within(&times, settled, Duration::from_secs(1));
    // The burst, and what a busy machine pushes together at this rate.
    ensure!(most <= RATE + RATE / 5, "{most} in one second");
    let last = *times.last().context("requests")?;
    let least = least_within(&times, settled, last, Duration::from_secs(5)).context("too short")?;
    ensure!(
        least >= RATE * 5 * 9 / 10,
        "only {least} in 5 s at {RATE} a second"
    );
    Ok(())
}

fn accepted(app: AppId, endpoint: EndpointId, batch: usize) -> Record {
    let now = UnixMillis::now();
    let message = Message {
        id: MessageId::generate(now, &mut rand::rng()),
        app,
        event_type: "test.event".to_owned(),
        event_id: None,
        channels: vec![],
        content_type: "application/json".to_owned(),
        payload: Bytes::from(json!({"batch": batch}).to_string()),
        accepted_at: now,
        payload_retention_days: None,
        traceparent: None,
    };
    let delivery = NewDelivery {
        id: DeliveryId::derive(message.id, endpoint),
        endpoint,
        disposition: Disposition::Waiting(DeferReason::Paused),
    };
    Record::Accepted(Accepted {
        message: Arc::new(message),
        deliveries: vec![delivery],
        trigger: Trigger::Scheduled,
        claims: vec![],
    })
}

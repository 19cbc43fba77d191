//! 100,000 deliveries wait for a paused endpoint: nobody else notices, and it is drained in order at its pace.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use postrider_model::{
    Accepted, AppId, DeferReason, DeliveryId, Disposition, EndpointId, Message, MessageId, NewDelivery,
    Record, Trigger, UnixMillis,
};
use postrider_secrets::Keyring;
use postrider_store::RecordStore;
use postrider_store_postgres::{PostgresStore, Settings};
use postrider_testkit::receiver::{Receiver, Recorded};
use serde_json::json;

use crate::api::Api;
use crate::stack::{SECRETS_KEY, SOON, Shape, Shared, Stack};
use crate::watch::{Queues, Watched, least_within, most_within, times};

const BATCHES: usize = 50;
const BATCH: usize = 2_000;
/// Deliveries a second once it is resumed, and how many of them are judged.
const RATE: usize = 300;
const JUDGED: usize = 3_000;
/// Deliveries handed out at once.
const OUT: usize = 100;

#[tokio::test]
async fn a_backlog_costs_nobody_anything_and_drains_in_order() -> Result<()> {
    let shape = Shape {
        workers: 0,
        ..Shape::SMALL
    };
    let mut stack = Stack::scaled_on(Shared::on_shared_services().await?, shape, |builder| builder).await?;
    let worker = Watched::worker(&mut stack, &[]).await?;
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let (app, other) = (api.app().await?, api.app().await?);
    let paused = json!({"url": receiver.url("/paused"), "paused": true, "throttleRate": RATE});
    let endpoint = api.endpoint_with(&app, paused).await?;
    api.endpoint(&app, &receiver.url("/same-app")).await?;
    api.endpoint(&other, &receiver.url("/other-app")).await?;
    let shared = stack.shared.as_ref().context("scaled out")?;
    seed(shared, app.parse()?, endpoint.parse()?).await?;

    let queues = Queues::connect(shared).await?;
    others_get_theirs(&api, &receiver, &app, &other, 20).await?;
    ensure!(
        queues.ready(shared, &["deliver", "retry"]).await? == 0,
        "the backlog stands in the broker"
    );
    ensure!(receiver.count("/paused") == 0);
    let deferred = worker.metric("postrider_deliveries_deferred_total").await?;
    ensure!(deferred < 0.5, "{deferred} deliveries were deferred");

    api.patch(
        &format!("/app/{app}/endpoint/{endpoint}"),
        &json!({"paused": false}),
    )
    .await?;
    receiver
        .wait_for("/paused", SOON, |requests| !requests.is_empty())
        .await?;
    others_get_theirs(&api, &receiver, &app, &other, 40).await?;
    let ready = queues.ready(shared, &["deliver", "retry"]).await?;
    ensure!(
        usize::try_from(ready)? <= OUT,
        "{ready} frames stand in queues while it drains"
    );
    let requests = receiver
        .wait_for("/paused", SOON, |requests| requests.len() >= JUDGED)
        .await?;
    judge(&requests[..JUDGED])
}

/// Twenty messages to two applications arrive, whatever waits.
async fn others_get_theirs(
    api: &Api,
    receiver: &Receiver,
    app: &str,
    other: &str,
    total: usize,
) -> Result<()> {
    let payloads: Vec<_> = (0..20).map(|n| json!({"n": n})).collect();
    api.batch(app, &payloads).await?;
    api.batch(other, &payloads).await?;
    for path in ["/same-app", "/other-app"] {
        receiver
            .wait_for(path, SOON, |requests| requests.len() == total)
            .await?;
    }
    Ok(())
}

fn judge(requests: &[Recorded]) -> Result<()> {
    for (place, request) in requests.iter().enumerate() {
        let body: serde_json::Value = serde_json::from_slice(&request.body)?;
        let batch = usize::try_from(body["batch"].as_u64().context("not a seeded body")?)?;
        let (from, to) = (batch * BATCH, (batch + 1) * BATCH);
        // What is handed out together may arrive in any order.
        ensure!(
            from <= place + 2 * OUT && place < to + 2 * OUT,
            "number {place} to arrive was in batch {batch}"
        );
    }
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

/// Records accepted messages as the ledger would: each batch is due a little after the one before.
async fn seed(shared: &Shared, app: AppId, endpoint: EndpointId) -> Result<()> {
    let keyring = Arc::new(Keyring::parse(SECRETS_KEY)?);
    let store = PostgresStore::connect(Settings::new(shared.postgres.clone().into(), keyring))?;
    for batch in 0..BATCHES {
        let records: Vec<Record> = (0..BATCH).map(|_| accepted(app, endpoint, batch)).collect();
        store.record(&records).await?;
    }
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

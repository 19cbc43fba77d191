//! Old and new processes side by side, both ways, and the upgrade order under load.
//!
//! What an old process says and understands is the frozen schema of the first wire version (`tests/frozen/v1`), spoken
//! over the real queues. Whole processes are replaced in the order ledger, workers, gateways. Where
//! `POSTRIDER_OLD_BIN` names the binary of an earlier version, those are the processes that are replaced; without
//! it today's binary stands for the old one too, and the test shows that the order of restarts loses nothing.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::stream::{Stream, StreamExt as _, select_all};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use postrider_model::{AppId, AttemptId, DeliveryId, EndpointId, MessageId, UnixMillis};
use postrider_testkit::process::{Postrider, binary};
use postrider_testkit::proxy::Proxy;
use postrider_testkit::receiver::{Receiver, Reply, Script};
use postrider_testkit::wait::{Poll, wait_for};
use prost::Message as _;
use serde_json::json;

use crate::api::Api;
use crate::faults::{SHORT_LEASE, Scene};
use crate::stack::{SOON, Shape, Shared, Stack};

#[expect(unreachable_pub, reason = "generated code")]
mod v1 {
    include!(concat!(env!("OUT_DIR"), "/postrider.v1.rs"));
}

const OLD_BIN: &str = "POSTRIDER_OLD_BIN";

/// The default drain timeout of a worker, and some time to close connections.
const DRAIN: Duration = Duration::from_secs(35);

/// The default number of shards.
const SHARDS: u16 = 4;

/// An old process' connection to the broker.
struct Old {
    _connection: Connection,
    channel: Channel,
}

impl Old {
    async fn connect(shared: &Shared) -> Result<Self> {
        let connection = Connection::connect(&shared.amqp, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self {
            _connection: connection,
            channel,
        })
    }

    async fn say(&self, queue: &str, kind: v1::frame::Kind) -> Result<()> {
        let frame = v1::Frame {
            schema: 1,
            kind: Some(kind),
        };
        self.pass_on(queue, &frame.encode_to_vec()).await
    }

    async fn pass_on(&self, queue: &str, bytes: &[u8]) -> Result<()> {
        let confirm = self
            .channel
            .basic_publish(
                "".into(),
                queue.into(),
                BasicPublishOptions::default(),
                bytes,
                BasicProperties::default().with_delivery_mode(2),
            )
            .await?
            .await?;
        ensure!(confirm.is_ack(), "{queue} did not take a frame");
        Ok(())
    }

    async fn consume(&self, queue: &str) -> Result<Consumer> {
        Ok(self
            .channel
            .basic_consume(
                queue.into(),
                queue.into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?)
    }
}

/// The next frame's bytes, and what an old process reads in them.
async fn heard(
    consumer: &mut (impl Stream<Item = lapin::Result<Delivery>> + Unpin),
) -> Result<(Vec<u8>, v1::frame::Kind)> {
    let next = tokio::time::timeout(SOON, consumer.next()).await?;
    let delivery = next.context("the consumer ended")??;
    delivery.acker.ack(BasicAckOptions::default()).await?;
    let frame = v1::Frame::decode(delivery.data.as_slice())?;
    ensure!(frame.schema == 1, "an old process parks version {}", frame.schema);
    Ok((
        delivery.data,
        frame.kind.context("a kind that an old process knows")?,
    ))
}

fn bytes(id: &[u8; 16]) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(id)
}

/// A message as the first version's gateway writes it.
fn message(app: AppId, payload: &'static [u8]) -> (MessageId, v1::Message) {
    let now = UnixMillis::now();
    let id = MessageId::generate(now, &mut rand::rng());
    let message = v1::Message {
        id: bytes(id.as_bytes()),
        app: bytes(app.as_bytes()),
        event_type: "test.event".into(),
        event_id: None,
        channels: vec![],
        content_type: "application/json".into(),
        payload: payload.into(),
        accepted_at: now.0,
        payload_retention_days: None,
        traceparent: None,
    };
    (id, message)
}

#[tokio::test]
async fn an_old_gateway_beside_new_workers_and_a_new_ledger() -> Result<()> {
    let stack = Stack::scaled(Shape::SMALL).await?;
    let shared = stack.shared.as_ref().context("a scaled-out stack")?;
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    let endpoint = api.endpoint(&app, &receiver.url("/hook")).await?;
    let to: EndpointId = endpoint.parse()?;
    let (id, message) = message(app.parse()?, br#"{"from":"old"}"#);
    let delivery = DeliveryId::derive(id, to);

    let old = Old::connect(shared).await?;
    let accepted = v1::Accepted {
        message: Some(message.clone()),
        deliveries: vec![v1::NewDelivery {
            id: bytes(delivery.as_bytes()),
            endpoint: bytes(to.as_bytes()),
            disposition: v1::Disposition::Queued as i32,
            reason: 0,
        }],
        trigger: v1::Trigger::Scheduled as i32,
        claims: vec![],
    };
    let record = v1::Record {
        fact: Some(v1::record::Fact::Accepted(accepted)),
    };
    let journal = v1::Journal {
        records: vec![record],
    };
    old.say(&shared.queue("journal"), v1::frame::Kind::Journal(journal))
        .await?;
    let job = v1::Job {
        delivery: bytes(delivery.as_bytes()),
        endpoint: bytes(to.as_bytes()),
        trigger: v1::Trigger::Scheduled as i32,
        ..v1::Job::default()
    };
    let jobs = v1::Jobs {
        messages: vec![message],
        jobs: vec![job],
    };
    // Any shard: an old gateway chooses it by a hash of the endpoint.
    let queue = shared.queue("deliver.3");
    old.say(&queue, v1::frame::Kind::Jobs(jobs)).await?;

    let requests = receiver
        .wait_for("/hook", SOON, |requests| !requests.is_empty())
        .await?;
    ensure!(
        requests[0].webhook_id() == id.to_string() && requests[0].body.as_ref() == br#"{"from":"old"}"#,
        "{:?}",
        requests[0]
    );
    api.wait_status(&app, &id.to_string(), "success").await?;
    let recorded = api.get(&format!("/app/{app}/msg/{id}")).await?;
    ensure!(recorded["payload"] == json!({"from": "old"}), "{recorded}");
    let parked = api.get("/parked").await?;
    ensure!(parked["data"] == json!([]), "{parked}");
    Ok(())
}

#[tokio::test]
async fn an_old_worker_beside_a_new_gateway_and_a_new_ledger() -> Result<()> {
    let shape = Shape {
        workers: 0,
        ..Shape::SMALL
    };
    let stack = Stack::scaled(shape).await?;
    let shared = stack.shared.as_ref().context("a scaled-out stack")?;
    let api = stack.api();
    let app = api.app().await?;
    let endpoint = api.endpoint(&app, "http://127.0.0.1:9/hook").await?;
    let to: EndpointId = endpoint.parse()?;
    let sent = api.send(&app, json!({"for": "old"})).await?;

    let old = Old::connect(shared).await?;
    let mut consumers = Vec::new();
    for shard in 0..SHARDS {
        consumers.push(old.consume(&shared.queue(&format!("deliver.{shard}"))).await?);
    }
    let (_, kind) = heard(&mut select_all(consumers)).await?;
    let v1::frame::Kind::Jobs(jobs) = kind else {
        bail!("{kind:?} in a deliver queue")
    };
    let (job, message) = (&jobs.jobs[0], &jobs.messages[0]);
    let id: MessageId = sent.parse()?;
    ensure!(
        message.id.as_ref() == id.as_bytes()
            && message.payload.as_ref() == br#"{"for":"old"}"#
            && job.endpoint.as_ref() == to.as_bytes()
            && job.delivery.as_ref() == DeliveryId::derive(id, to).as_bytes(),
        "{jobs:?}"
    );

    let now = UnixMillis::now();
    let attempt = v1::Attempt {
        id: bytes(AttemptId::generate(now, &mut rand::rng()).as_bytes()),
        started_at: now.0,
        duration: 12_000,
        class: v1::AttemptClass::Success as i32,
        status: 204,
        response: bytes::Bytes::new(),
        url: "http://127.0.0.1:9/hook".into(),
    };
    let outcome = v1::Outcome {
        delivery: job.delivery.clone(),
        message: message.id.clone(),
        endpoint: job.endpoint.clone(),
        app: message.app.clone(),
        run: job.run,
        attempts: job.attempts + 1,
        trigger: job.trigger,
        at: now.0,
        attempt: Some(attempt),
        next: Some(v1::outcome::Next::Delivered(v1::Delivered {})),
    };
    let record = v1::Record {
        fact: Some(v1::record::Fact::Outcome(outcome)),
    };
    let journal = v1::Journal {
        records: vec![record],
    };
    old.say(&shared.queue("journal"), v1::frame::Kind::Journal(journal))
        .await?;
    api.wait_status(&app, &sent, "success").await?;
    let attempts = api.get(&format!("/app/{app}/attempt/msg/{sent}")).await?;
    ensure!(attempts["data"][0]["responseStatusCode"] == 204, "{attempts}");
    Ok(())
}

#[tokio::test]
async fn an_old_ledger_beside_a_new_gateway_and_a_new_worker() -> Result<()> {
    let shape = Shape {
        ledgers: 0,
        ..Shape::SMALL
    };
    let mut stack = Stack::scaled(shape).await?;
    let shared = stack.shared.as_ref().context("a scaled-out stack")?;
    let old = Old::connect(shared).await?;
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    receiver.on("/down", Script::always(Reply::Status(503)));
    let app = api.app().await?;
    api.endpoint(&app, &receiver.url("/hook")).await?;
    api.endpoint(&app, &receiver.url("/down")).await?;
    let sent = api.send(&app, json!({"for": "old"})).await?;
    let id: MessageId = sent.parse()?;

    // An old ledger understands what it is told: one message with two deliveries, one success, one retry.
    let mut consumer = old.consume(&shared.queue("journal")).await?;
    let (mut frames, mut accepted, mut delivered, mut retried) = (vec![], 0, 0, 0);
    while (accepted, delivered, retried) != (1, 1, 1) {
        let (frame, kind) = heard(&mut consumer).await?;
        frames.push(frame);
        let v1::frame::Kind::Journal(journal) = kind else {
            bail!("{kind:?} in the journal")
        };
        for record in journal.records {
            match record.fact.context("a fact that an old ledger knows")? {
                v1::record::Fact::Accepted(fact) => {
                    let message = fact.message.context("a message")?;
                    ensure!(message.id.as_ref() == id.as_bytes(), "{message:?}");
                    ensure!(message.payload.as_ref() == br#"{"for":"old"}"#, "{message:?}");
                    let queued = v1::Disposition::Queued as i32;
                    ensure!(fact.deliveries.iter().all(|new| new.disposition == queued));
                    ensure!(fact.deliveries.len() == 2, "{:?}", fact.deliveries);
                    accepted += 1;
                }
                v1::record::Fact::Outcome(fact) => {
                    ensure!(fact.message.as_ref() == id.as_bytes(), "{fact:?}");
                    match fact.next.context("a next step that an old ledger knows")? {
                        v1::outcome::Next::Delivered(_) => delivered += 1,
                        v1::outcome::Next::Retry(retry) => {
                            ensure!(retry.delay > 0, "a retry at once");
                            retried += 1;
                        }
                        other => bail!("{other:?}"),
                    }
                }
            }
        }
    }
    drop(consumer);
    // It hands over to a new one: the original bytes, for it may not know every field.
    for frame in frames {
        old.pass_on(&shared.queue("journal"), &frame).await?;
    }
    drop(old);
    stack.ledgers.push(shared.builder("ledger").start().await?);
    receiver.on("/down", Script::always(Reply::Status(200)));
    stack.api().wait_status(&app, &sent, "success").await
}

/// Waits until a load balancer would send to it.
async fn ready(process: &Postrider) -> Result<()> {
    let url = format!("{}/health/ready", process.url());
    wait_for("a gateway to be ready", SOON, async || {
        let status = reqwest::get(&url).await?.status();
        Ok(if status.is_success() {
            Poll::Ready(())
        } else {
            Poll::NotYet(status.to_string())
        })
    })
    .await
}

fn address(process: &Postrider) -> Result<SocketAddr> {
    Ok(process.url().trim_start_matches("http://").parse()?)
}

async fn end(process: &mut Postrider) -> Result<()> {
    let status = process.terminate(DRAIN).await?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

/// Ledgers, workers, gateways, one process after the other, while producers send through a load balancer before each of
/// two gateways, which sends to what says that it is ready.
#[tokio::test]
async fn the_upgrade_order_under_load() -> Result<()> {
    let new = binary()?;
    let old = match std::env::var_os(OLD_BIN) {
        Some(path) => PathBuf::from(path),
        None => new.clone(),
    };
    let (lease, time) = SHORT_LEASE;
    let shape = Shape {
        gateways: 2,
        workers: 2,
        ledgers: 2,
    };
    let shared = Shared::on_shared_services().await?;
    shared.migrate_by(&old).await?;
    let mut stack = Stack::start_on(shared, shape, |builder| builder.env(lease, time).program(&old)).await?;
    let (mut balancers, mut apis) = (vec![], vec![]);
    for gateway in &stack.gateways {
        ready(gateway).await?;
        let balancer = Proxy::start(address(gateway)?).await?;
        apis.push(Api::new(&format!("http://{}", balancer.address()), stack.key()));
        balancers.push(balancer);
    }
    let scene = Scene::new(&apis[1]).await?;
    scene.receiver.on(
        "/fine",
        Script::always(Reply::Status(200)).delay(Duration::from_millis(100)),
    );
    let load = scene.load(&apis);
    load.progress(60, SOON).await?;

    // The new schema, under old processes.
    let shared = stack.shared.as_ref().context("a scaled-out stack")?;
    shared.migrate().await?;
    for process in stack.ledgers.iter_mut().chain(&mut stack.workers) {
        load.progress(60, SOON).await?;
        end(process).await?;
        process.set_program(&new);
        process.start_again().await?;
    }
    for (gateway, balancer) in stack.gateways.iter_mut().zip(&balancers) {
        load.progress(60, SOON).await?;
        let builder = shared.builder("gateway").env(lease, time).program(&new);
        let mut replaced = std::mem::replace(gateway, builder.start().await?);
        ready(gateway).await?;
        balancer.retarget(address(gateway)?);
        end(&mut replaced).await?;
    }
    load.progress(60, SOON).await?;
    ensure!(load.refusals().is_empty(), "producers saw an error: {load}");
    load.finish().await?;
    let verdict = scene.settle(&apis[1], "upgraded").await?;
    ensure!(
        verdict.unacknowledged == 0,
        "a repeat made another message: {verdict}"
    );
    ensure!(
        verdict.duplicates == 0,
        "a drained worker left a POST without its outcome: {verdict}"
    );
    let parked = apis[0].get("/parked").await?;
    ensure!(parked["data"] == json!([]), "{parked}");
    Ok(())
}

//! What the on-call asks first: are the services there, what is queued, what waits and for whom.
//!
//! [`Status::look`] is also what `postrider status` prints when it works straight on the services. A service that is
//! away leaves its part empty; the rest is told all the same.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use postrider_broker::{Broker, Health, Queue};
use postrider_limits::SharedLimits;
use postrider_model::UnixMillis;
use postrider_store::SharedStore;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::page::show_time;
use crate::state::Api;

/// Endpoints that are listed.
const ENDPOINTS_MAX: u32 = 10;
/// How long one service may take to answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(8);
/// Looks at the queues, and the time between them: 2 s.
const LOOKS_MAX: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How everything stands.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// When this was seen.
    #[schema(format = DateTime)]
    pub at: String,
    /// The version of the program that looked.
    pub version: String,
    /// The services.
    pub services: ServiceStatus,
    /// The broker's queues; empty when it is away or inside another process.
    pub queues: Vec<QueueStatus>,
    /// What waits in the store; absent when it is away.
    pub waiting: Option<WaitingStatus>,
    /// Breakers that are open now; absent when nobody who was asked knows.
    pub open_breakers: Option<u64>,
    /// What was set aside for an operator; absent when the store is away.
    pub parked: Option<u64>,
}

/// The state of the services: `up`, `down`, `blocked` (a broker that takes no frames), or `inside` (part of another
/// process, which was not asked).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// RabbitMQ, or the queues inside the process.
    pub broker: String,
    /// Postgres or SQLite.
    pub store: String,
    /// Redis, or the limits inside the process.
    pub limits: String,
}

/// A queue.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// `deliver.N`, `retry.N`, `journal` or `stray`.
    pub name: String,
    /// Frames in it: with RabbitMQ those that nobody has taken yet.
    pub frames: u64,
    /// Who consumes it: workers of `deliver` and `retry`, ledgers of `journal` and `stray`.
    pub consumers: u32,
}

/// What waits in the store.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaitingStatus {
    /// Deliveries that wait, exact up to 100,000.
    pub total: u64,
    /// The same by reason; `leased` stands for what is in an embedded process's queues.
    #[schema(value_type = Object)]
    pub by_reason: std::collections::BTreeMap<String, u64>,
    /// How long the oldest due delivery has waited beyond its time, in seconds.
    pub ready_age_seconds: f64,
    /// The endpoints for which most deliveries wait, most first; at most 10.
    pub endpoints: Vec<EndpointStatus>,
}

/// What waits for one endpoint.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// The application.
    pub app_id: String,
    /// The endpoint.
    pub endpoint_id: String,
    /// Deliveries that wait for it.
    pub waiting: u64,
    /// When the first of them is due.
    #[schema(format = DateTime)]
    pub due_at: String,
}

impl Status {
    /// Asks the services, each for at most 8 s. Without a broker or limits, because they are inside another process,
    /// their parts say so.
    pub async fn look(
        store: &SharedStore,
        broker: Option<&dyn Broker>,
        limits: Option<&SharedLimits>,
        shards: u16,
    ) -> Self {
        let (stored, queues, open) = tokio::join!(
            in_time(look_at_store(store)),
            in_time(look_at_queues(broker, shards)),
            in_time(look_at_limits(limits)),
        );
        let (waiting, parked) = stored.unzip();
        Self {
            at: show_time(UnixMillis::now()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            services: ServiceStatus {
                broker: broker.map_or("inside", |broker| health(broker)).to_owned(),
                store: if waiting.is_some() { "up" } else { "down" }.to_owned(),
                limits: match (limits, open) {
                    (None, _) => "inside",
                    (Some(_), Some(_)) => "up",
                    (Some(_), None) => "down",
                }
                .to_owned(),
            },
            queues: queues.unwrap_or_default(),
            waiting,
            open_breakers: open,
            parked,
        }
    }
}

async fn in_time<T>(look: impl Future<Output = Option<T>>) -> Option<T> {
    tokio::time::timeout(LOOK_TIMEOUT, look).await.ok().flatten()
}

fn health(broker: &dyn Broker) -> &'static str {
    match *broker.health().borrow() {
        Health::Up => "up",
        Health::Blocked => "blocked",
        Health::Down => "down",
    }
}

async fn look_at_store(store: &SharedStore) -> Option<(WaitingStatus, u64)> {
    let (counts, busiest, parked) = tokio::join!(
        store.waiting_counts(),
        store.busiest(ENDPOINTS_MAX),
        store.parked_count()
    );
    let (counts, ready_age) = counts.ok()?;
    let endpoints = busiest.ok()?.into_iter().map(|busy| EndpointStatus {
        app_id: busy.app.to_string(),
        endpoint_id: busy.endpoint.to_string(),
        waiting: busy.count,
        due_at: show_time(busy.due_at),
    });
    let waiting = WaitingStatus {
        total: counts.iter().map(|count| count.count).sum(),
        by_reason: counts
            .iter()
            .map(|count| (count.reason.as_str().to_owned(), count.count))
            .collect(),
        ready_age_seconds: ready_age.as_secs_f64(),
        endpoints: endpoints.collect(),
    };
    Some((waiting, parked.ok()?))
}

/// All queues or none, so that a missing one is not taken for an empty one. A broker that was just connected to may
/// need a moment.
async fn look_at_queues(broker: Option<&dyn Broker>, shards: u16) -> Option<Vec<QueueStatus>> {
    let broker = broker?;
    for _ in 0..LOOKS_MAX {
        if let Some(queues) = look_once(broker, shards).await {
            return Some(queues);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    None
}

async fn look_once(broker: &dyn Broker, shards: u16) -> Option<Vec<QueueStatus>> {
    let deliver = (0..shards).map(|shard| (format!("deliver.{shard}"), Queue::Deliver(shard)));
    let retry = (0..shards).map(|shard| (format!("retry.{shard}"), Queue::Retry(shard)));
    let others = [
        ("journal".to_owned(), Queue::Journal),
        ("stray".to_owned(), Queue::Stray),
    ];
    let looks = deliver
        .chain(retry)
        .chain(others)
        .map(|(name, queue)| async move {
            let look = broker.look(queue).await.ok()?;
            Some(QueueStatus {
                name,
                frames: look.depth,
                consumers: look.consumers,
            })
        });
    futures_util::future::join_all(looks).await.into_iter().collect()
}

async fn look_at_limits(limits: Option<&SharedLimits>) -> Option<u64> {
    let limits = limits?;
    // Open breakers may come from the local stand-in, so the shared state is asked whether it is there.
    limits.ping().await.ok()?;
    limits.open_breakers().await.ok()
}

/// How everything stands: services, queues, what waits and for whom.
#[utoipa::path(
    get, path = "/api/v1/status", tag = "Operation", operation_id = "v1.status.get",
    responses((status = 200, body = Status))
)]
pub(crate) async fn get(State(api): State<Api>) -> Json<Status> {
    let (broker, limits) = (Some(api.broker.as_ref()), Some(&api.limits));
    Json(Status::look(&api.store, broker, limits, api.settings.shards).await)
}

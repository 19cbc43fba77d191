//! The scheduler: what waits and is due goes back to the broker, at the pace that its endpoint can take.
//!
//! One round: claim endpoints (longest due first, so that no endpoint starves another), ask the limits once for all of
//! them (rate tokens, breaker, probe lease), lease rows, publish. A lease raises the row's run and moves its due time
//! to the end of the lease, so whatever happens to the job, the row is due again by itself; only the recorder removes
//! it. What could not be published is given back at once. A limited endpoint's deliveries go out one by one, see
//! [`pace`].
//!
//! Several schedulers are kept apart by the store's claims. None of this is needed for safety: a row leased twice has
//! two runs, and only the later one counts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use postrider_broker::{Health, PublishError, Queue};
use postrider_limits::{Release, ReleaseRequest};
use postrider_model::{DeliveryId, EndpointId, Job};
use postrider_store::{DueEndpoint, Grant, StoreError};
use postrider_telemetry::error_chain;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{Context, pace};

/// A claimed endpoint is hidden from other schedulers for so long: far longer than a round, short enough that an
/// endpoint claimed by a process that died is soon looked at again.
const HOLD: Duration = Duration::from_secs(5);
/// Most due rows counted per endpoint.
const COUNT_MAX: u32 = 1_000;
/// Bytes of bodies that are published to a shard at once, if they are of several deliveries.
const PORTION: usize = 8 * 1024 * 1024;
/// How soon a job that could not be published is due again.
const GIVE_BACK: Duration = Duration::from_millis(500);
/// Rounds whose jobs are being published while the next one is made.
const PUBLISHING_MAX: usize = 32;
/// Jobs that are to go out within such a time go together, at its end.
const TOGETHER: Duration = Duration::from_millis(10);

/// Publications under way.
struct Publishing {
    tasks: TaskTracker,
    room: Arc<Semaphore>,
}

pub(crate) async fn run(context: Arc<Context>) {
    let publishing = Publishing {
        tasks: TaskTracker::new(),
        room: Arc::new(Semaphore::new(PUBLISHING_MAX)),
    };
    rounds(&context, &publishing).await;
    publishing.tasks.close();
    publishing.tasks.wait().await;
}

async fn rounds(context: &Arc<Context>, publishing: &Publishing) {
    while !context.stop.is_cancelled() {
        if !broker_is_up(context).await {
            return;
        }
        match round(context, publishing).await {
            Ok(0) => rest(context).await,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the scheduler cannot reach the store");
                if !context.store_is_back().await {
                    return;
                }
            }
        }
    }
}

/// Waits until the broker takes frames; false when the ledger stops first.
async fn broker_is_up(context: &Context) -> bool {
    let mut health = context.deps.broker.health();
    tokio::select! {
        () = context.stop.cancelled() => false,
        up = health.wait_for(|health| *health == Health::Up) => up.is_ok(),
    }
}

/// Sleeps until something is due, the recorder wrote something, or the longest idle time has passed.
async fn rest(context: &Context) {
    let settings = &context.settings;
    let sleep = match (
        context.deps.store.next_due().await,
        context.deps.store.now().await,
    ) {
        (Ok(Some(due)), Ok(now)) => due.since(now).clamp(settings.tick, settings.idle),
        _ => settings.idle,
    };
    tokio::select! {
        () = context.stop.cancelled() => {}
        () = tokio::time::sleep(sleep) => {}
        () = context.wake.notified() => {
            // The recorder writes many times a second under load; a look at the store each tick is enough.
            tokio::time::sleep(settings.tick).await;
        }
    }
}

/// One round; returns how many endpoints had something due.
async fn round(context: &Arc<Context>, publishing: &Publishing) -> Result<usize, StoreError> {
    let Context { settings, deps, .. } = context.as_ref();
    let due = deps.store.claim_due(settings.claim_max, COUNT_MAX, HOLD).await?;
    if due.is_empty() {
        return Ok(0);
    }
    let (decided, now) = tokio::join!(decide(context, &due), deps.store.now());
    let granted_at = Instant::now();
    let (grants, times): (Vec<Grant>, Vec<Times>) = decided.into_iter().unzip();
    if let Some(oldest) = due.iter().map(|endpoint| endpoint.since).min() {
        deps.metrics.scheduler_lateness(now?.since(oldest));
    }
    let leased = deps.store.lease(&grants, settings.lease).await?;
    postrider_failpoint::hit("scheduler.after_lease");
    deps.metrics.scheduler_released(leased.len());
    if !leased.is_empty() {
        let jobs = leased.into_iter().map(|leased| leased.job);
        let planned = plan(jobs, due.iter().map(|endpoint| endpoint.endpoint).zip(times));
        // The next round does not wait for the confirms of this one.
        let permit = publishing.room.clone().acquire_owned().await;
        let context = context.clone();
        publishing.tasks.spawn(async move {
            let _permit = permit;
            let context = &context;
            let publishes = planned.into_iter().map(|(offset, jobs)| async move {
                tokio::time::sleep_until(granted_at + offset).await;
                publish(context, jobs).await;
            });
            futures_util::future::join_all(publishes).await;
            postrider_failpoint::hit("scheduler.after_publish");
        });
    }
    Ok(due.len())
}

/// When the jobs of a grant go out, in their order, counted from the grant; at once where it says nothing.
type Times = Vec<Duration>;

/// Jobs by when they go out.
fn plan(
    jobs: impl Iterator<Item = Job>,
    times: impl Iterator<Item = (EndpointId, Times)>,
) -> BTreeMap<Duration, Vec<Job>> {
    let mut times: HashMap<EndpointId, std::vec::IntoIter<Duration>> = times
        .map(|(endpoint, times)| (endpoint, times.into_iter()))
        .collect();
    let mut planned: BTreeMap<Duration, Vec<Job>> = BTreeMap::new();
    for job in jobs {
        let time = times
            .get_mut(&job.endpoint)
            .and_then(Iterator::next)
            .unwrap_or_default();
        let slot = u32::try_from(time.as_millis().div_ceil(TOGETHER.as_millis())).unwrap_or(u32::MAX);
        planned.entry(TOGETHER * slot).or_default().push(job);
    }
    planned
}

/// Asks the limits for every claimed endpoint at once.
async fn decide(context: &Context, due: &[DueEndpoint]) -> Vec<(Grant, Times)> {
    let settings = &context.settings;
    let mut asked = Vec::with_capacity(due.len());
    let mut requests = Vec::with_capacity(due.len());
    for (index, endpoint) in due.iter().enumerate() {
        let room = settings.out_per_endpoint.saturating_sub(endpoint.out);
        let wanted = endpoint.due.min(room);
        if wanted > 0 {
            asked.push(index);
            requests.push(ReleaseRequest {
                app: endpoint.app,
                endpoint: endpoint.endpoint,
                rate: endpoint
                    .throttle_rate
                    .map(|rate| pace::rate(rate, endpoint.ordered)),
                wanted,
                more: endpoint.due > wanted,
            });
        }
    }
    let releases = match context.deps.limits.release(&requests).await {
        Ok(releases) => releases,
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "the limits are away; nothing is released for a second");
            vec![Release::Wait(Duration::from_secs(1)); requests.len()]
        }
    };
    let mut grants: Vec<(Grant, Times)> = due
        .iter()
        .map(|endpoint| (nothing(endpoint, settings.tick * 5), Times::new()))
        .collect();
    for (index, release) in asked.into_iter().zip(releases) {
        grants[index] = grant(&due[index], release, settings.tick);
    }
    grants
}

fn nothing(endpoint: &DueEndpoint, not_before: Duration) -> Grant {
    Grant {
        endpoint: endpoint.endpoint,
        count: 0,
        probe: false,
        has_token: false,
        ordered: endpoint.ordered,
        not_before,
    }
}

fn grant(endpoint: &DueEndpoint, release: Release, tick: Duration) -> (Grant, Times) {
    match release {
        Release::Granted { count, next } => {
            let grant = Grant {
                count,
                has_token: endpoint.throttle_rate.is_some(),
                ..nothing(endpoint, next.max(tick))
            };
            match endpoint.throttle_rate {
                Some(rate) if !endpoint.ordered => {
                    let not_before = grant.not_before.max(pace::rest(rate));
                    let times = pace::offsets(rate, count, next).collect();
                    (Grant { not_before, ..grant }, times)
                }
                _ => (grant, Times::new()),
            }
        }
        Release::Probe => {
            let grant = Grant {
                count: 1,
                probe: true,
                ..nothing(endpoint, Duration::from_secs(1))
            };
            (grant, Times::new())
        }
        Release::Wait(time) => (nothing(endpoint, time.max(tick)), Times::new()),
    }
}

/// Publishes leased jobs, shard by shard; an `ordered` run stays together. What was surely not published is given back.
async fn publish(context: &Context, jobs: Vec<Job>) {
    let mut shards: HashMap<u16, Vec<Job>> = HashMap::new();
    for job in jobs {
        shards
            .entry(job.endpoint.shard(context.settings.shards))
            .or_default()
            .push(job);
    }
    let publishes = shards.into_iter().map(|(shard, jobs)| async move {
        for jobs in portions(jobs, PORTION) {
            let leases: Vec<(DeliveryId, u32)> = jobs.iter().map(|job| (job.delivery, job.run)).collect();
            if let Err(error) = publish_shard(context, Queue::Retry(shard), jobs).await {
                give_back(context, &leases, &error).await;
            }
        }
    });
    futures_util::future::join_all(publishes).await;
}

/// Cuts a shard's jobs into portions of at most about `bytes` of bodies, one after another: all at once could be more
/// than a publisher ever takes, and would then be leased and given back for ever. An `ordered` run is not cut.
fn portions(jobs: Vec<Job>, bytes: usize) -> Vec<Vec<Job>> {
    let mut portions: Vec<Vec<Job>> = Vec::new();
    let mut held = 0;
    for job in jobs {
        let size = job.message.payload.len();
        let goes_on = |last: &Job| job.ordered && last.ordered && last.endpoint == job.endpoint;
        match portions.last_mut() {
            Some(portion) if held + size <= bytes || portion.last().is_some_and(goes_on) => {
                held += size;
                portion.push(job);
            }
            _ => {
                held = size;
                portions.push(vec![job]);
            }
        }
    }
    portions
}

/// An error only when nothing of it is out. When that is not known (the connection broke before the confirm), giving the
/// rows back would send them twice, as two runs. The same run is published again instead, which workers recognise; if
/// that takes too long, the leases run out.
async fn publish_shard(context: &Context, queue: Queue, jobs: Vec<Job>) -> Result<(), PublishError> {
    let until = tokio::time::Instant::now() + context.settings.lease / 2;
    let mut may_be_out = false;
    loop {
        let error = match context.deps.jobs.publish(queue, jobs.clone()).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        may_be_out |= matches!(
            error,
            PublishError::Lost | PublishError::Timeout(_) | PublishError::Refused
        );
        if !may_be_out {
            return Err(error);
        }
        let deliveries = jobs.len();
        tracing::warn!(error = %error_chain(&error), deliveries, "released deliveries were not confirmed");
        if context.stopped_within(GIVE_BACK).await || tokio::time::Instant::now() >= until {
            return Ok(());
        }
    }
}

async fn give_back(context: &Context, leases: &[(DeliveryId, u32)], error: &PublishError) {
    if !matches!(error, PublishError::Full) {
        tracing::warn!(error = %error_chain(error), deliveries = leases.len(), "released deliveries were not published");
    }
    if let Err(error) = context.deps.store.give_back(leases, GIVE_BACK).await {
        // Their leases expire by themselves.
        tracing::warn!(error = %error_chain(&error), "leases were not given back");
    }
}

#[cfg(test)]
mod tests {
    use postrider_model::{AppId, EndpointId, Message, MessageId, Trigger, UnixMillis};

    use super::*;

    fn job(endpoint: EndpointId, ordered: bool, bytes: usize) -> Job {
        let mut rng = rand::rng();
        let message = MessageId::generate(UnixMillis(1), &mut rng);
        Job {
            delivery: DeliveryId::derive(message, endpoint),
            endpoint,
            message: Arc::new(Message {
                id: message,
                app: AppId::generate(UnixMillis(1), &mut rng),
                event_type: "a".to_owned(),
                event_id: None,
                channels: Vec::new(),
                content_type: "application/json".to_owned(),
                payload: vec![0; bytes].into(),
                accepted_at: UnixMillis(1),
                payload_retention_days: None,
                traceparent: None,
            }),
            run: 1,
            attempts: 0,
            trigger: Trigger::Scheduled,
            probe: false,
            has_token: false,
            ordered,
            lease_until: None,
        }
    }

    #[test]
    fn a_shard_is_published_in_portions_that_cut_no_ordered_run() {
        let endpoint = || EndpointId::generate(UnixMillis(1), &mut rand::rng());
        let (free, first, second) = (endpoint(), endpoint(), endpoint());
        let jobs = [(free, false); 5]
            .into_iter()
            .chain([(first, true); 4])
            .chain([(second, true); 2])
            .map(|(endpoint, ordered)| job(endpoint, ordered, 40))
            .collect();
        let sizes: Vec<usize> = portions(jobs, 100).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 2, 5, 2], "the run of four goes on after the fifth");
        assert_eq!(portions(vec![job(free, false, 1_000)], 100).len(), 1);
    }
}

//! The scheduler: what waits and is due goes back to the broker, at the pace that its endpoint can take.
//!
//! One round: claim endpoints (longest due first, so that no endpoint starves another), ask the limits once for all of
//! them (rate tokens, breaker, probe lease), lease rows, publish. A lease raises the row's run and moves its due time
//! to the end of the lease, so whatever happens to the job, the row is due again by itself; only the recorder removes
//! it. While the journal is far behind, a lease is out for as much longer: its outcome may be on the way ([`lag`](crate::lag)).
//! What could not be published is given back at once (see [`publish`]). A limited endpoint's deliveries go out one
//! by one, see [`pace`]. An endpoint with as many leases out as may be is looked at again when one of them has ended.
//!
//! Several schedulers are kept apart by the store's claims. None of this is needed for safety: a row leased twice has
//! two runs, of which only the later one counts, or the one that succeeds.

mod publish;

use std::sync::Arc;
use std::time::Duration;

use postrider_broker::Health;
use postrider_limits::{FinishReport, Release, ReleaseRequest};
use postrider_model::{DeliveryId, MessageId, UnixMillis};
use postrider_store::{DueEndpoint, Grant, LeasedJob, StoreError};
use postrider_telemetry::error_chain;
use tokio::time::Instant;

use self::publish::{Publishing, Times};
use crate::{Context, Settings, pace, poison};

/// Rest after the store failed.
const STORE_REST: Duration = Duration::from_millis(100);
/// A claimed endpoint is hidden from other schedulers for so long: far longer than a round, short enough that an
/// endpoint claimed by a process that died is soon looked at again.
const HOLD: Duration = Duration::from_secs(5);
/// How long an endpoint with as many leases out as may be rests, unless a recorder tells that one has ended: it may be
/// in another process, or the word of it have come too early.
const FULL_REST: Duration = Duration::from_secs(1);
/// Due rows that are counted per endpoint: this many, or as many as tell whether more is due than may be out.
const COUNT_MAX: u32 = 1_000;

pub(crate) async fn run(context: Arc<Context>) {
    let publishing = Publishing::new();
    rounds(&context, &publishing).await;
    publishing.end().await;
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
                if !context.store_is_back(STORE_REST).await {
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
    let due_in = match (
        context.deps.store.next_due().await,
        context.deps.store.now().await,
    ) {
        (Ok(Some(due)), Ok(now)) => due.since(now),
        _ => Duration::MAX,
    };
    tokio::select! {
        () = context.stop.cancelled() => {}
        () = tokio::time::sleep(sleep(due_in, settings)) => {}
        () = context.wake.notified() => {
            // The recorder writes many times a second under load; a look at the store each tick is enough.
            tokio::time::sleep(settings.tick).await;
        }
    }
}

/// A tick at least, since all looks keep to it, also where it is longer than the longest sleep.
fn sleep(due_in: Duration, settings: &Settings) -> Duration {
    due_in.min(settings.idle).max(settings.tick)
}

/// One round; returns how many endpoints had something due.
async fn round(context: &Arc<Context>, publishing: &Publishing) -> Result<usize, StoreError> {
    let Context { settings, deps, .. } = context.as_ref();
    let part = (settings.out_per_endpoint / 8).max(1);
    let ended = context.ended.take(part, settings.tick * 2);
    if !ended.is_empty() {
        deps.store.look_again(&ended).await?;
    }
    let count_max = COUNT_MAX.max(settings.out_per_endpoint.saturating_add(1));
    // Asked for each statement, as late as can be: a store that comes back may have kept the one before waiting.
    let lag = || context.lag.of_leases(settings.lease / 2, UnixMillis::now());
    let due = deps
        .store
        .claim_due(settings.claim_max, count_max, HOLD, lag())
        .await?;
    if due.is_empty() {
        return Ok(0);
    }
    let (decided, now) = tokio::join!(decide(context, &due), deps.store.now());
    let granted_at = Instant::now();
    let (grants, times): (Vec<Grant>, Vec<Times>) = decided.into_iter().unzip();
    // Without the store's time the round goes on: what was decided must be leased or given back.
    if let (Some(oldest), Ok(now)) = (due.iter().map(|endpoint| endpoint.since).min(), now) {
        deps.metrics.scheduler_lateness(now.since(oldest));
    }
    let leased = match deps.store.lease(&grants, settings.lease, lag()).await {
        Ok(leased) => leased,
        Err(error) => {
            spare_probes(context, &due, &grants, &[]).await;
            return Err(error);
        }
    };
    postrider_failpoint::hit("scheduler.after_lease");
    let (fatal, leased): (Vec<_>, Vec<_>) = leased.into_iter().partition(poison::is_fatal);
    if !fatal.is_empty() {
        publishing.spawn_park(context, fatal);
    }
    spare_probes(context, &due, &grants, &leased).await;
    deps.metrics.scheduler_released(leased.len());
    if !leased.is_empty() {
        let jobs = leased.into_iter().map(|leased| leased.job);
        let planned = publish::plan(jobs, due.iter().map(|endpoint| endpoint.endpoint).zip(times));
        publishing.start(context, granted_at, planned).await;
    }
    Ok(due.len())
}

/// Gives the probe leases of breakers back for which nothing was leased: the next look gets them again.
async fn spare_probes(context: &Context, due: &[DueEndpoint], grants: &[Grant], leased: &[LeasedJob]) {
    let spare = due.iter().zip(grants).filter(|(_, grant)| {
        grant.probe && leased.iter().all(|leased| leased.job.endpoint != grant.endpoint)
    });
    let reports: Vec<FinishReport> = spare
        .map(|(due, _)| {
            let no_delivery = DeliveryId::derive(MessageId::floor(UnixMillis(0)), due.endpoint);
            publish::no_probe(due.app, due.endpoint, no_delivery, 0)
        })
        .collect();
    publish::give_probes_back(context, &reports).await;
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
        .map(|endpoint| {
            let is_full = endpoint.out >= settings.out_per_endpoint;
            let nothing = nothing(endpoint, FULL_REST);
            (Grant { is_full, ..nothing }, Times::new())
        })
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
        is_full: false,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_is_a_tick_at_least_and_the_idle_time_at_most() {
        let hour = Duration::from_secs(3_600);
        for (tick, longest) in [(20, 200), (1_000, 1_000)] {
            let settings = Settings {
                tick: Duration::from_millis(tick),
                ..Settings::default()
            };
            assert_eq!(sleep(Duration::ZERO, &settings), settings.tick);
            assert_eq!(sleep(hour, &settings), Duration::from_millis(longest));
        }
    }
}

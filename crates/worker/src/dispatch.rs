//! From a frame to the board: may each delivery be tried now, and how is its endpoint configured?
//!
//! One trip to the limits a frame. The configuration's version comes with it, so a change that was committed a second
//! ago is seen by what was queued before it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider_limits::{Gate, GateRequest, Rate, Verdict};
use postrider_model::{
    AppId, AppSnapshot, CancelReason, DeferReason, Endpoint, EndpointId, Job, Next, UnixMillis,
};
use postrider_store::StoreError;
use postrider_telemetry::error_chain;
use postrider_telemetry::labels::Duplicate;

use crate::attempt::{Step, Unit, Work};
use crate::classify::OURS_DELAY;
use crate::finish;
use crate::run::Context;

type Snapshots = HashMap<AppId, Result<Option<Arc<AppSnapshot>>, StoreError>>;

/// Sends each delivery on: to the board, to the store, or to its end.
pub(crate) async fn dispatch(context: &Arc<Context>, jobs: Vec<Job>) {
    if jobs.is_empty() {
        return;
    }
    let mut snapshots = Snapshots::new();
    for job in &jobs {
        // What is cached will do to learn the rate; the gates bring the version.
        if let Entry::Vacant(entry) = snapshots.entry(job.message.app) {
            entry.insert(context.config.snapshot(job.message.app, Some(0)).await);
        }
    }
    let gates = gates(context, &jobs, &snapshots).await;
    for (app, version) in newest_versions(&jobs, &gates) {
        refresh(context, &mut snapshots, app, version).await;
    }
    let mut runs: Vec<(EndpointId, Vec<Step>)> = Vec::new();
    for (job, gate) in jobs.into_iter().zip(gates) {
        let ordered = job.ordered.then_some(job.endpoint);
        let Some(step) = step(context, job, gate, &snapshots) else {
            continue;
        };
        match ordered {
            None => push(context, Unit::One(step)),
            Some(endpoint) => match runs.iter_mut().find(|run| run.0 == endpoint) {
                Some(run) => run.1.push(step),
                None => runs.push((endpoint, vec![step])),
            },
        }
    }
    for (_, steps) in runs {
        push(context, Unit::Run(steps));
    }
    context.pump();
}

/// Each application of the frame once, however many of its deliveries there are: a look at one that is gone, or while
/// no version is known, may cost a trip to the store.
fn newest_versions(jobs: &[Job], gates: &[Gate]) -> HashMap<AppId, Option<u64>> {
    let mut versions = HashMap::new();
    for (job, gate) in jobs.iter().zip(gates) {
        let newest = versions.entry(job.message.app).or_insert(gate.version);
        *newest = gate.version.max(*newest);
    }
    versions
}

/// Reloads an application whose version has moved on.
async fn refresh(context: &Context, snapshots: &mut Snapshots, app: AppId, version: Option<u64>) {
    let known = match snapshots.get(&app) {
        Some(Ok(Some(snapshot))) => Some(snapshot.version),
        _ => None,
    };
    let behind = match (known, version) {
        (Some(known), Some(version)) => known < version,
        (None, Some(_)) | (_, None) => true,
    };
    if behind {
        snapshots.insert(app, context.config.snapshot(app, version).await);
    }
}

async fn gates(context: &Context, jobs: &[Job], snapshots: &Snapshots) -> Vec<Gate> {
    let requests: Vec<GateRequest> = jobs
        .iter()
        .map(|job| GateRequest {
            app: job.message.app,
            endpoint: job.endpoint,
            delivery: job.delivery,
            run: job.run,
            rate: if job.has_token {
                None
            } else {
                rate_of(job, snapshots)
            },
            released: job.run > 0,
        })
        .collect();
    match context.deps.limits.gate(&requests).await {
        Ok(gates) if gates.len() == jobs.len() => gates,
        Ok(_) => open_gates(jobs.len()),
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "the limits are away; deliveries go on without them");
            context.deps.metrics.limits_fallback("gate");
            open_gates(jobs.len())
        }
    }
}

fn open_gates(count: usize) -> Vec<Gate> {
    vec![
        Gate {
            version: None,
            verdict: Verdict::Go
        };
        count
    ]
}

fn rate_of(job: &Job, snapshots: &Snapshots) -> Option<Rate> {
    let Some(Ok(Some(snapshot))) = snapshots.get(&job.message.app) else {
        return None;
    };
    snapshot.endpoint(job.endpoint)?.throttle_rate.map(Rate::smooth)
}

/// What to do with one delivery; `None` when it needs no turn on the board. Its outcome is then journaled in a task of
/// its own: those behind it in the frame, of other endpoints, do not wait for that.
fn step(context: &Arc<Context>, job: Job, gate: Gate, snapshots: &Snapshots) -> Option<Step> {
    let end = match gate.verdict {
        Verdict::Done(mark) => match postrider_wire::decode_outcome(mark) {
            Ok(outcome) => {
                context.deps.metrics.duplicate(Duplicate::DoneMark);
                return marked(context, job, outcome);
            }
            Err(error) => {
                tracing::error!(error = %error_chain(&error), "a done mark cannot be read; delivering again");
                None
            }
        },
        Verdict::Go => None,
        Verdict::Rate(delay) => Some(deferred(DeferReason::Rate, delay)),
        Verdict::Breaker(delay) => Some(deferred(DeferReason::Breaker, delay)),
        Verdict::Backlog => Some(deferred(DeferReason::Backlog, Duration::ZERO)),
    };
    let wanted = match snapshots.get(&job.message.app) {
        Some(Ok(Some(snapshot))) => wanted(snapshot.endpoint(job.endpoint)),
        Some(Ok(None)) => Err(Next::Cancelled(CancelReason::ApplicationDeleted)),
        Some(Err(error)) => {
            tracing::warn!(error = %error_chain(error), "configuration is out of reach");
            context.deps.metrics.our_failure("configuration");
            Err(deferred(DeferReason::Ours, OURS_DELAY))
        }
        None => Err(deferred(DeferReason::Ours, OURS_DELAY)),
    };
    // A cancelled or paused endpoint counts before a limit that it met.
    let next = match (wanted, end) {
        (Err(next), _) | (Ok(_), Some(next)) => next,
        (Ok(endpoint), None) => match context.config.target(endpoint, UnixMillis::now()) {
            Ok(target) => return Some(Step::Try(Work { job, target })),
            Err(error) => {
                tracing::error!(endpoint.id = %job.endpoint, error = %error_chain(&error), "an endpoint is unusable");
                context.deps.metrics.our_failure("prepare");
                deferred(DeferReason::Ours, OURS_DELAY)
            }
        },
    };
    let owner = context.clone();
    context
        .tasks
        .spawn(async move { finish::untried(&owner, &job, next).await });
    None
}

fn deferred(reason: DeferReason, delay: Duration) -> Next {
    Next::Deferred { reason, delay }
}

/// The endpoint, if it is to be delivered to now.
fn wanted(endpoint: Option<&Arc<Endpoint>>) -> Result<&Arc<Endpoint>, Next> {
    match endpoint {
        None => Err(Next::Cancelled(CancelReason::EndpointDeleted)),
        Some(endpoint) if endpoint.disabled => Err(Next::Cancelled(CancelReason::EndpointDisabled)),
        Some(endpoint) if endpoint.paused => Err(deferred(DeferReason::Paused, Duration::ZERO)),
        Some(endpoint) => Ok(endpoint),
    }
}

/// A delivery that was done before: its outcome is journaled again. In an `ordered` run it keeps its place, because a
/// failure stops the run.
fn marked(context: &Arc<Context>, job: Job, outcome: postrider_model::Outcome) -> Option<Step> {
    if job.ordered {
        return Some(Step::Marked(Box::new(outcome), job));
    }
    let owner = context.clone();
    context
        .tasks
        .spawn(async move { finish::again(&owner, &job, outcome).await });
    None
}

fn push(context: &Arc<Context>, unit: Unit) {
    if context.is_stopping() {
        context.defer_unit(unit, DeferReason::Drain, Duration::ZERO);
        return;
    }
    let (app, endpoint, host) = unit.place();
    let refused = context
        .board
        .lock()
        .push(app, endpoint, host, unit, Instant::now());
    if let Err((unit, wait)) = refused {
        context.defer_unit(unit, DeferReason::Queue, wait);
    }
}

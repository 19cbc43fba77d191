//! From a frame to the board: may each delivery be tried now, and how is its endpoint configured?
//!
//! One trip to the limits a frame. The configuration's version comes with it, so a change that was committed a second
//! ago is seen by what was queued before it. A rate token is taken only for what the board has kept a place for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use postrider_limits::{Gate, GateRequest, Rate, Verdict};
use postrider_model::{
    AppId, AppSnapshot, DeferReason, Endpoint, EndpointId, Job, Next, Outcome, UnixMillis,
};
use postrider_store::StoreError;
use postrider_telemetry::error_chain;
use postrider_telemetry::labels::Duplicate;

use crate::classify::{LEASE_OVER_DELAY, OURS_DELAY};
use crate::duty::{Duty, Place};
use crate::finish;
use crate::run::Context;
use crate::target::Target;
use crate::trace::Trace;
use crate::unit::{Step, Unit, Work};

type Snapshots = HashMap<AppId, Result<Option<Arc<AppSnapshot>>, StoreError>>;

/// Sends each delivery on: to the board, to the store, or to its end. `duties` answer for those that are not sent on
/// yet.
pub(crate) async fn dispatch(context: &Arc<Context>, jobs: Vec<Job>, duties: Vec<Duty>) {
    if jobs.is_empty() {
        return;
    }
    // What is cached will do to learn the rate; the gates bring the version.
    let apps: HashMap<AppId, Option<u64>> = jobs.iter().map(|job| (job.message.app, Some(0))).collect();
    let mut snapshots = Snapshots::new();
    load(context, &mut snapshots, apps).await;
    let gates = gates(context, &jobs, &snapshots).await;
    let behind = newest_versions(&jobs, &gates)
        .into_iter()
        .filter(|(app, version)| is_behind(&snapshots, *app, *version))
        .collect();
    load(context, &mut snapshots, behind).await;
    let mut runs: Vec<(EndpointId, Vec<(Step, Duty)>)> = Vec::new();
    for ((job, duty), gated) in jobs.into_iter().zip(duties).zip(gates) {
        let ordered = job.ordered.then_some(job.endpoint);
        let step = match way(context, job, &gated, &snapshots) {
            Way::Board(step) => step,
            Way::Again(outcome) => {
                finish::again(context, outcome, duty).await;
                continue;
            }
            Way::Untried(job, next) => {
                finish::untried(context, &job, next, duty).await;
                continue;
            }
        };
        let Some(endpoint) = ordered else {
            push(context, Unit::One(step), gated.place);
            duty.handed_on();
            continue;
        };
        match runs.iter_mut().find(|run| run.0 == endpoint) {
            Some(run) => run.1.push((step, duty)),
            None => runs.push((endpoint, vec![(step, duty)])),
        }
    }
    for (_, run) in runs {
        let (steps, duties): (Vec<Step>, Vec<Duty>) = run.into_iter().unzip();
        push(context, Unit::Run(steps), None);
        duties.into_iter().for_each(Duty::handed_on);
    }
    context.pump();
}

/// Looks at the configuration of these applications, at all of them at once: each may have to wait for the store.
async fn load(context: &Context, snapshots: &mut Snapshots, apps: HashMap<AppId, Option<u64>>) {
    let looks = apps
        .into_iter()
        .map(|(app, version)| async move { (app, context.config.snapshot(app, version).await) });
    snapshots.extend(join_all(looks).await);
}

/// Each application of the frame once, however many of its deliveries there are: a look at one that is gone, or while
/// no version is known, may cost a trip to the store.
fn newest_versions(jobs: &[Job], gates: &[Gated]) -> HashMap<AppId, Option<u64>> {
    let mut versions = HashMap::new();
    for (job, gated) in jobs.iter().zip(gates) {
        let newest = versions.entry(job.message.app).or_insert(gated.gate.version);
        *newest = gated.gate.version.max(*newest);
    }
    versions
}

/// Whether an application's version has moved on, or is not known.
fn is_behind(snapshots: &Snapshots, app: AppId, version: Option<u64>) -> bool {
    let known = match snapshots.get(&app) {
        Some(Ok(Some(snapshot))) => Some(snapshot.version),
        _ => None,
    };
    match (known, version) {
        (Some(known), Some(version)) => known < version,
        (None, Some(_)) | (_, None) => true,
    }
}

/// A delivery at the gate.
struct Gated {
    gate: Gate,
    /// Its place on the board, if it had to have one before it took a token.
    place: Option<Place>,
    /// There was no place for it: how long it should wait.
    refused: Option<Duration>,
}

async fn gates(context: &Arc<Context>, jobs: &[Job], snapshots: &Snapshots) -> Vec<Gated> {
    let mut requests = Vec::with_capacity(jobs.len());
    let mut places = Vec::with_capacity(jobs.len());
    for job in jobs {
        let is_free = job.has_token || job.run > 0;
        let rate = if is_free { None } else { rate_of(job, snapshots) };
        let place = rate.map(|_| Place::keep(context, job.endpoint));
        requests.push(GateRequest {
            app: job.message.app,
            endpoint: job.endpoint,
            delivery: job.delivery,
            run: job.run,
            rate: rate.filter(|_| matches!(place, Some(Ok(_)))),
            released: job.run > 0,
        });
        places.push(place);
    }
    let gates = ask(context, &requests).await;
    gates
        .into_iter()
        .zip(places)
        .map(|(gate, place)| {
            let (place, refused) = match place {
                None => (None, None),
                Some(Ok(place)) => (Some(place), None),
                Some(Err(wait)) => (None, Some(wait)),
            };
            Gated { gate, place, refused }
        })
        .collect()
}

async fn ask(context: &Context, requests: &[GateRequest]) -> Vec<Gate> {
    match context.deps.limits.gate(requests).await {
        Ok(gates) if gates.len() == requests.len() => return gates,
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "the limits are away; deliveries go on without them");
            context.deps.metrics.limits_fallback("gate");
        }
    }
    let open = Gate {
        version: None,
        verdict: Verdict::Go,
    };
    vec![open; requests.len()]
}

fn rate_of(job: &Job, snapshots: &Snapshots) -> Option<Rate> {
    let Some(Ok(Some(snapshot))) = snapshots.get(&job.message.app) else {
        return None;
    };
    snapshot.endpoint(job.endpoint)?.throttle_rate.map(Rate::smooth)
}

/// Where a delivery goes from here.
enum Way {
    /// It has its turn.
    Board(Step),
    /// It was done before: its outcome is journaled again.
    Again(Box<Outcome>),
    /// Its run ends without an attempt.
    Untried(Job, Next),
}

fn way(context: &Context, job: Job, gated: &Gated, snapshots: &Snapshots) -> Way {
    if let Verdict::Done(mark) = &gated.gate.verdict {
        match postrider_wire::decode_outcome(mark.clone()) {
            Ok(outcome) => {
                context.deps.metrics.duplicate(Duplicate::DoneMark);
                let outcome = Box::new(outcome);
                // In an `ordered` run it keeps its place, because a failure stops the run.
                return if job.ordered {
                    Way::Board(Step::Marked(outcome, job))
                } else {
                    Way::Again(outcome)
                };
            }
            Err(error) => {
                tracing::error!(error = %error_chain(&error), "a done mark cannot be read; delivering again");
            }
        }
    }
    match target(context, &job, gated, snapshots) {
        Ok((target, trace)) => Way::Board(Step::Try(Work { job, target, trace })),
        Err(next) => Way::Untried(job, next),
    }
}

/// Where a delivery goes now, or what becomes of it instead.
fn target(
    context: &Context,
    job: &Job,
    gated: &Gated,
    snapshots: &Snapshots,
) -> Result<(Arc<Target>, Trace), Next> {
    let snapshot = match snapshots.get(&job.message.app) {
        Some(Ok(Some(snapshot))) => snapshot,
        Some(Ok(None)) => return Err(deferred(DeferReason::Ours, OURS_DELAY)),
        Some(Err(error)) => {
            tracing::warn!(error = %error_chain(error), "configuration is out of reach");
            context.deps.metrics.our_failure("configuration");
            return Err(deferred(DeferReason::Ours, OURS_DELAY));
        }
        None => return Err(deferred(DeferReason::Ours, OURS_DELAY)),
    };
    // An endpoint that is gone or paused counts before a limit that it met.
    let endpoint = wanted(snapshot.endpoint(job.endpoint))?;
    if lease_is_over(context, job) {
        context.clock.doubt();
        return Err(deferred(DeferReason::Ours, LEASE_OVER_DELAY));
    }
    match gated.gate.verdict {
        Verdict::Go | Verdict::Done(_) => {}
        Verdict::Rate(delay) => return Err(deferred(DeferReason::Rate, delay)),
        Verdict::Breaker(delay) => return Err(deferred(DeferReason::Breaker, delay)),
        Verdict::Backlog => return Err(deferred(DeferReason::Backlog, Duration::ZERO)),
    }
    if let Some(wait) = gated.refused {
        return Err(deferred(DeferReason::Queue, wait));
    }
    match context.config.target(endpoint, UnixMillis::now()) {
        Ok(target) => {
            let trace = Trace::new(context.deps.tracer.as_ref(), job, &snapshot.application);
            Ok((target, trace))
        }
        Err(error) => {
            tracing::error!(endpoint.id = %job.endpoint, error = %error_chain(&error), "an endpoint is unusable");
            context.deps.metrics.our_failure("prepare");
            Err(deferred(DeferReason::Ours, OURS_DELAY))
        }
    }
}

/// A delivery whose lease has run out may have been handed out again, as another run; with all workers away, several
/// times. Only the last one is POSTed: the outcome of an earlier one changes nothing, and this one's own makes it due.
/// An `ordered` run judges for itself, step by step.
pub(crate) fn lease_is_over(context: &Context, job: &Job) -> bool {
    !job.ordered && job.lease_until.is_some_and(|until| context.clock.now() > until)
}

fn deferred(reason: DeferReason, delay: Duration) -> Next {
    Next::Deferred { reason, delay }
}

/// The endpoint, if it is to be delivered to now. What is deleted or disabled is not cancelled here: an end is final, and a
/// newer configuration, whose version the limits may have missed, may know better. The store knows, and cancels what waits
/// for it there.
fn wanted(endpoint: Option<&Arc<Endpoint>>) -> Result<&Arc<Endpoint>, Next> {
    match endpoint {
        None => Err(deferred(DeferReason::Ours, OURS_DELAY)),
        Some(endpoint) if endpoint.disabled => Err(deferred(DeferReason::Ours, OURS_DELAY)),
        Some(endpoint) if endpoint.paused => Err(deferred(DeferReason::Paused, Duration::ZERO)),
        Some(endpoint) => Ok(endpoint),
    }
}

fn push(context: &Arc<Context>, unit: Unit, place: Option<Place>) {
    if context.is_stopping() {
        context.defer_unit(unit, DeferReason::Drain, Duration::ZERO);
        return;
    }
    let (app, endpoint, host) = unit.place();
    let now = Instant::now();
    let mut board = context.board.lock();
    let refused = match place {
        Some(place) => {
            place.used();
            board.push_kept(app, endpoint, host, unit, now);
            Ok(())
        }
        None => board.push(app, endpoint, host, unit, now),
    };
    drop(board);
    if let Err((unit, wait)) = refused {
        context.defer_unit(unit, DeferReason::Queue, wait);
    }
}

//! One attempt: sign, POST, see what came of it. And an `ordered` endpoint's run: one attempt after another.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use postrider_egress::{Failure, Request, Response};
use postrider_limits::Signal;
use postrider_model::{
    AppId, Attempt, AttemptClass, AttemptId, DeferReason, EndpointId, Job, Next, Outcome, Record, UnixMillis,
};
use rand::RngExt;
use tokio::task::JoinSet;

use crate::board::{Slot, Started, Verdict};
use crate::classify::{Consequence, Met, OURS_DELAY, consequence, retry_after};
use crate::config::Target;
use crate::finish;
use crate::run::Context;

/// Longest that an `ordered` run goes on; the rest of it returns to the store.
const RUN_MAX: Duration = Duration::from_secs(20);
/// What is left of a lease when a run stops, for clocks that differ.
const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// After a slow attempt's deadline, how long its outcome may take to be recorded before it is tried again.
const IN_FLIGHT_MARGIN: Duration = Duration::from_secs(15);

/// A delivery and where it goes.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) job: Job,
    pub(crate) target: Arc<Target>,
}

/// One step of a unit.
#[derive(Debug)]
pub(crate) enum Step {
    /// To be tried.
    Try(Work),
    /// Done before; its outcome is to be journaled again.
    Marked(Box<Outcome>, Job),
}

/// What takes one turn on the board.
#[derive(Debug)]
pub(crate) enum Unit {
    /// A delivery.
    One(Step),
    /// An `ordered` endpoint's run, at least one step.
    Run(Vec<Step>),
}

impl Unit {
    pub(crate) fn into_steps(self) -> Vec<Step> {
        match self {
            Self::One(step) => vec![step],
            Self::Run(steps) => steps,
        }
    }

    /// Application, endpoint and host.
    pub(crate) fn place(&self) -> (AppId, EndpointId, u64) {
        let steps = match self {
            Self::One(step) => std::slice::from_ref(step),
            Self::Run(steps) => steps.as_slice(),
        };
        let host = steps.iter().find_map(|step| match step {
            Step::Try(work) => Some(work.target.host),
            Step::Marked(..) => None,
        });
        let job = match &steps[0] {
            Step::Try(work) => &work.job,
            Step::Marked(_, job) => job,
        };
        (job.message.app, job.endpoint, host.unwrap_or_default())
    }
}

/// Runs a started unit and gives its slot back.
pub(crate) async fn run(context: Arc<Context>, started: Started<Unit>) {
    let Started { unit, mut slot } = started;
    let verdict = match unit {
        Unit::One(Step::Try(work)) => {
            let tried = attempt(&context, &work, &mut slot).await;
            // The endpoint is free for the next one before the outcome is on record.
            context.board.lock().done(&slot, tried.verdict, Instant::now());
            context.pump();
            finish::tried(&context, &work.job, tried.outcome, tried.signal).await;
            return;
        }
        Unit::One(Step::Marked(outcome, job)) => {
            finish::again(&context, &job, *outcome).await;
            Verdict::Neutral
        }
        Unit::Run(steps) => run_in_order(&context, steps, &mut slot).await,
    };
    context.board.lock().done(&slot, verdict, Instant::now());
    context.pump();
}

/// Sends a run serially; stops at the first failure, and defers what it did not come to.
async fn run_in_order(context: &Arc<Context>, steps: Vec<Step>, slot: &mut Slot) -> Verdict {
    let started = Instant::now();
    let mut verdict = Verdict::Neutral;
    let mut going = true;
    let mut left = Vec::new();
    let mut outcomes = JoinSet::new();
    for step in steps {
        match step {
            Step::Marked(outcome, job) => {
                going &= outcome.next == Next::Delivered;
                finish::again(context, &job, *outcome).await;
            }
            Step::Try(work) => {
                let lease_ends = work.job.lease_until.is_some_and(|until| {
                    UnixMillis::now().plus(LEASE_MARGIN + timeout(context, &work.target)) > until
                });
                going &= !lease_ends && started.elapsed() < RUN_MAX && !context.is_stopping();
                if !going {
                    left.push(Step::Try(work));
                    continue;
                }
                slot.begin(Instant::now());
                let tried = attempt(context, &work, slot).await;
                verdict = tried.verdict;
                let skipped = matches!(tried.outcome.next, Next::Exhausted { gone: false })
                    && work.target.endpoint.on_exhausted == postrider_model::ExhaustedPolicy::Skip;
                going = tried.outcome.next == Next::Delivered || skipped;
                // The next one does not wait for the confirm: what arrived has arrived in order, and nothing of the
                // endpoint is leased again until every outcome of the run is recorded.
                let context = context.clone();
                outcomes.spawn(async move {
                    finish::tried(&context, &work.job, tried.outcome, tried.signal).await;
                });
            }
        }
    }
    outcomes.join_all().await;
    finish::defer_unit(context, Unit::Run(left), DeferReason::Ordered, Duration::ZERO).await;
    verdict
}

struct Tried {
    outcome: Outcome,
    signal: Signal,
    verdict: Verdict,
}

/// One attempt. A panic in it is a failure of ours like any other: the delivery waits in the store, and neither its
/// slot nor its part in the envelope is lost with the task.
async fn attempt(context: &Arc<Context>, work: &Work, slot: &mut Slot) -> Tried {
    let panicked = match AssertUnwindSafe(post(context, work, slot)).catch_unwind().await {
        Ok(tried) => return tried,
        Err(panicked) => panicked,
    };
    drop(panicked);
    tracing::error!(delivery.id = %work.job.delivery, "an attempt panicked");
    context.deps.metrics.our_failure("panic");
    Tried {
        outcome: Outcome {
            delivery: work.job.delivery,
            message: work.job.message.id,
            endpoint: work.job.endpoint,
            app: work.job.message.app,
            run: work.job.run,
            attempts: work.job.attempts,
            trigger: work.job.trigger,
            at: UnixMillis::now(),
            attempt: None,
            next: Next::Deferred {
                reason: DeferReason::Ours,
                delay: OURS_DELAY,
            },
        },
        signal: Signal::Neutral,
        verdict: Verdict::Neutral,
    }
}

/// Signs, POSTs and sees what came of it.
async fn post(context: &Arc<Context>, work: &Work, slot: &mut Slot) -> Tried {
    let Work { job, target } = work;
    let deadline = timeout(context, target);
    let id = AttemptId::generate(UnixMillis::now(), &mut rand::rng());
    let started_at = UnixMillis::now();
    postrider_failpoint::hit_for("worker.before_post", || &target.endpoint.url);
    let clock = Instant::now();
    let result = match &target.url {
        Err(reason) => Err(Failure::Blocked(reason.clone())),
        Ok(url) => {
            let request = Request {
                target: url.clone(),
                headers: headers(job, target, started_at),
                body: job.message.payload.clone(),
                deadline,
            };
            let mut send = pin!(context.deps.client.send(request));
            tokio::select! {
                biased;
                result = &mut send => result,
                () = leave_when_slow(context, work, slot, deadline) => send.await,
            }
        }
    };
    let duration = clock.elapsed();
    postrider_failpoint::hit("worker.after_post");
    let (met, response) = met(result);
    let schedule = target
        .endpoint
        .retry_schedule
        .as_ref()
        .unwrap_or(&context.settings.retry_schedule);
    let attempts = job.attempts + u32::from(met != Met::Ours);
    let Consequence {
        class,
        next,
        signal,
        verdict,
    } = consequence(met, attempts, schedule, rand::rng().random_range(0.0..1.0));
    count(context, job, class, met, duration);
    let attempt = class.map(|class| Attempt {
        id,
        started_at,
        duration,
        class,
        status: if let Met::Status(status, _) = met {
            status
        } else {
            0
        },
        response,
        url: target.endpoint.url.clone(),
    });
    let outcome = Outcome {
        delivery: job.delivery,
        message: job.message.id,
        endpoint: job.endpoint,
        app: job.message.app,
        run: job.run,
        attempts,
        trigger: job.trigger,
        at: UnixMillis::now(),
        attempt,
        next,
    };
    Tried {
        outcome,
        signal,
        verdict,
    }
}

/// Once the attempt has run for long, journals it as in flight and lets its envelope go.
async fn leave_when_slow(context: &Arc<Context>, work: &Work, slot: &mut Slot, deadline: Duration) {
    tokio::time::sleep(context.settings.slow_after).await;
    context.board.lock().mark_slow(slot);
    let job = &work.job;
    let left = deadline.saturating_sub(context.settings.slow_after);
    let record = Record::Outcome(Box::new(Outcome {
        delivery: job.delivery,
        message: job.message.id,
        endpoint: job.endpoint,
        app: job.message.app,
        run: job.run,
        attempts: job.attempts,
        trigger: job.trigger,
        at: UnixMillis::now(),
        attempt: None,
        next: Next::InFlight {
            delay: left + IN_FLIGHT_MARGIN,
        },
    }));
    match context.deps.journal.publish(vec![record]).await {
        Ok(()) => {
            for share in context.active.leave((job.delivery, job.run)) {
                share.settle().await;
            }
        }
        // It keeps its envelope, which is only less thrifty.
        Err(error) => {
            tracing::warn!(error = %postrider_telemetry::error_chain(&error), "a slow attempt keeps its envelope");
        }
    }
}

fn timeout(context: &Context, target: &Target) -> Duration {
    target.endpoint.timeout.unwrap_or(context.settings.timeout)
}

fn headers(job: &Job, target: &Target, at: UnixMillis) -> HeaderMap {
    let mut headers = target.headers.clone();
    let id = job.message.id.to_string();
    let timestamp = at.as_secs();
    let signature = target.signer.sign(&id, timestamp, &job.message.payload);
    let style = target.style;
    let values = [
        (HeaderName::from_static(style.id()), id),
        (HeaderName::from_static(style.timestamp()), timestamp.to_string()),
        (HeaderName::from_static(style.signature()), signature),
    ];
    for (name, value) in values {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    if let Ok(content_type) = HeaderValue::try_from(job.message.content_type.as_str()) {
        headers.insert(CONTENT_TYPE, content_type);
    }
    headers
}

fn met(result: Result<Response, Failure>) -> (Met, Bytes) {
    match result {
        Ok(response) => {
            let asked = response
                .retry_after
                .as_ref()
                .and_then(|value| retry_after(value.to_str().ok()?, SystemTime::now()));
            (Met::Status(response.status, asked), response.body)
        }
        Err(failure) => {
            let text = Bytes::from(postrider_telemetry::error_chain(&failure));
            if failure.is_ours() {
                tracing::warn!(error = %postrider_telemetry::error_chain(&failure), "an attempt failed through our own fault");
                return (Met::Ours, text);
            }
            let class = match failure {
                Failure::Timeout { .. } => AttemptClass::Timeout,
                Failure::Connect { .. } => AttemptClass::Connect,
                Failure::Tls(_) => AttemptClass::Tls,
                Failure::NoAddress => AttemptClass::Dns,
                Failure::Blocked(_) => AttemptClass::Blocked,
                _ => AttemptClass::Http,
            };
            (Met::Failure(class), text)
        }
    }
}

fn count(context: &Context, job: &Job, class: Option<AttemptClass>, met: Met, duration: Duration) {
    let metrics = &context.deps.metrics;
    let Some(class) = class else {
        metrics.our_failure("attempt");
        return;
    };
    let status = if let Met::Status(status, _) = met {
        status
    } else {
        0
    };
    metrics.attempt(class, status, duration);
    if class == AttemptClass::Success && job.trigger == postrider_model::Trigger::Scheduled {
        metrics.end_to_end(UnixMillis::now().since(job.message.accepted_at));
    }
}

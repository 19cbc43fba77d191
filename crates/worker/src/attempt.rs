//! One attempt: sign, POST, see what came of it.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, InvalidHeaderValue};
use postrider_egress::{Failure, Request, Response};
use postrider_limits::Signal;
use postrider_model::{
    Attempt, AttemptClass, AttemptId, DeferReason, Job, Next, Outcome, Record, UnixMillis,
};
use postrider_telemetry::labels::{self, Label as _};
use rand::RngExt;

use crate::board::Verdict;
use crate::classify::{Consequence, Met, OURS_DELAY, consequence, of_probe, retry_after};
use crate::duty::{Seat, key};
use crate::run::Context;
use crate::target::Target;
use crate::unit::Work;
use crate::{envelope, finish};

/// After a slow attempt's deadline, how long its outcome may take to be recorded before it is tried again.
const IN_FLIGHT_MARGIN: Duration = Duration::from_secs(15);

/// Rest before a slow attempt whose journal record was not taken tries again to leave its envelope.
const LEAVE_AGAIN: Duration = Duration::from_secs(1);

/// An attempt's end.
pub(crate) struct Tried {
    pub(crate) outcome: Outcome,
    pub(crate) signal: Signal,
    pub(crate) verdict: Verdict,
}

/// One attempt. A panic in it is a failure of ours like any other: the delivery waits in the store, and neither its
/// slot nor its part in the envelope is lost with the task.
pub(crate) async fn attempt(context: &Arc<Context>, work: &Work, seat: &mut Seat) -> Tried {
    let panicked = match AssertUnwindSafe(post(context, work, seat)).catch_unwind().await {
        Ok(tried) => return tried,
        Err(panicked) => panicked,
    };
    drop(panicked);
    tracing::error!(delivery.id = %work.job.delivery, "an attempt panicked");
    context.deps.metrics.our_failure("panic");
    Tried {
        outcome: finish::no_attempt(
            &work.job,
            Next::Deferred {
                reason: DeferReason::Ours,
                delay: OURS_DELAY,
            },
        ),
        signal: Signal::Neutral,
        verdict: Verdict::Untried,
    }
}

/// Signs, POSTs and sees what came of it.
async fn post(context: &Arc<Context>, work: &Work, seat: &mut Seat) -> Tried {
    let Work { job, target, trace } = work;
    let tracer = context.deps.tracer.as_ref();
    let deadline = timeout(context, target);
    let started_at = UnixMillis::now();
    let id = AttemptId::generate(started_at, &mut rand::rng());
    postrider_failpoint::hit_for("worker.before_post", || &target.endpoint.url);
    let mut span = trace.attempt(tracer, job, id, &target.endpoint.url);
    let clock = Instant::now();
    let result = match &target.url {
        Err(reason) => Err(Failure::Blocked(reason.clone())),
        Ok(url) => {
            let mut headers = headers(job, target, started_at);
            trace.propagate(span.as_ref(), job, &mut headers);
            let request = Request {
                target: url.clone(),
                headers,
                body: job.message.payload.clone(),
                deadline,
            };
            let mut send = pin!(context.deps.client.send(request));
            tokio::select! {
                biased;
                result = &mut send => result,
                () = leave_when_slow(context, work, seat, deadline) => send.await,
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
    if let Some(span) = &mut span {
        span.met(class, status_of(met), &next);
    }
    drop(span);
    let attempt = class.map(|class| Attempt {
        id,
        started_at,
        duration,
        class,
        status: status_of(met),
        response,
        url: target.endpoint.url.clone(),
    });
    Tried {
        outcome: Outcome {
            attempts,
            attempt,
            ..finish::no_attempt(job, next)
        },
        signal: if job.probe && met != Met::Ours {
            of_probe(signal)
        } else {
            signal
        },
        verdict,
    }
}

/// Once the attempt has run for long, journals it as in flight and lets its envelope go, as soon as the journal takes it:
/// until then it keeps the room of its whole frame. What is on trial stays: its frame comes back if it kills the worker, and
/// the next one's turn is after its end.
async fn leave_when_slow(context: &Arc<Context>, work: &Work, seat: &mut Seat, deadline: Duration) {
    let began = Instant::now();
    tokio::time::sleep(context.settings.slow_after).await;
    seat.mark_slow();
    let job = &work.job;
    if context.active.keeps_permit_of(key(job), &context.trial) {
        return;
    }
    loop {
        let in_flight = Next::InFlight {
            delay: deadline.saturating_sub(began.elapsed()) + IN_FLIGHT_MARGIN,
        };
        let record = Record::Outcome(Box::new(finish::no_attempt(job, in_flight)));
        let Err(error) = context.deps.journal.publish(vec![record]).await else {
            break;
        };
        tracing::warn!(error = %postrider_telemetry::error_chain(&error), "a slow attempt keeps its envelope");
        tokio::time::sleep(LEAVE_AGAIN).await;
    }
    // In a task of its own: the attempt may end meanwhile, and half an acknowledgement would be none.
    let shares = context.active.leave(key(job));
    let _ = context.tasks.spawn(envelope::settle(shares)).await;
}

/// The endpoint's deadline.
pub(crate) fn timeout(context: &Context, target: &Target) -> Duration {
    target.endpoint.timeout.unwrap_or(context.settings.timeout)
}

fn headers(job: &Job, target: &Target, at: UnixMillis) -> HeaderMap {
    let mut headers = target.headers.clone();
    let id = job.message.id.to_string();
    let timestamp = at.as_secs();
    let signature = target.signer.sign(&id, timestamp, &job.message.payload);
    let values = [
        HeaderValue::try_from(id),
        Ok(HeaderValue::from(timestamp)),
        HeaderValue::try_from(signature),
        content_type(&job.message.content_type),
    ];
    for (name, value) in target.names.iter().chain([&CONTENT_TYPE]).zip(values) {
        if let Ok(value) = value {
            headers.insert(name, value);
        }
    }
    headers
}

/// Nearly every message has the first one: it needs no copy.
fn content_type(text: &str) -> Result<HeaderValue, InvalidHeaderValue> {
    match text {
        "application/json" => Ok(HeaderValue::from_static("application/json")),
        other => HeaderValue::try_from(other),
    }
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
                Failure::NoAddress | Failure::NoAnswer(_) => AttemptClass::Dns,
                Failure::Blocked(_) => AttemptClass::Blocked,
                _ => AttemptClass::Http,
            };
            (Met::Failure(class), text)
        }
    }
}

/// 0 without a response.
fn status_of(met: Met) -> u16 {
    match met {
        Met::Status(status, _) => status,
        _ => 0,
    }
}

fn count(context: &Context, job: &Job, class: Option<AttemptClass>, met: Met, duration: Duration) {
    let metrics = &context.deps.metrics;
    let Some(class) = class else {
        metrics.our_failure("attempt");
        return;
    };
    let status = status_of(met);
    tracing::debug!(
        delivery.id = %job.delivery,
        endpoint.id = %job.endpoint,
        attempt.outcome = labels::Outcome::of(class, status).as_str(),
        attempt.duration_seconds = duration.as_secs_f64(),
        "an attempt ended"
    );
    metrics.attempt(class, status, duration);
    if class == AttemptClass::Success && job.trigger == postrider_model::Trigger::Scheduled {
        metrics.end_to_end(UnixMillis::now().since(job.message.accepted_at));
    }
}

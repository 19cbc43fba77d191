//! Outcomes out: the done mark and the breaker's signal to the limits, the outcome to the journal, both at once; then
//! the delivery's shares are settled. The limits fail open; the journal is tried until it takes the outcome.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use postrider_broker::Pace;
use postrider_limits::{BreakerChange, FinishReport, Signal};
use postrider_model::{DeferReason, Job, Next, Outcome, Record, UnixMillis};
use postrider_telemetry::error_chain;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::run::{Context, ReportSender};
use crate::unit::{Step, Unit};

/// Reports waiting for a trip to the limits.
const REPORTS_MAX: usize = 8_192;
/// Reports of one trip.
const REPORTS_PER_TRIP: usize = 256;
/// Time from one trip to the next, while there are reports.
const REPORTS_PACE: Duration = Duration::from_millis(2);

/// A report and who waits for it.
pub(crate) type Report = (FinishReport, oneshot::Sender<()>);

/// Sends reports to the limits, many in one trip.
pub(crate) struct Reports(ReportSender);

pub(crate) fn reports() -> (Reports, mpsc::Receiver<Report>) {
    let (sender, receiver) = mpsc::channel(REPORTS_MAX);
    (Reports(sender), receiver)
}

/// One trip at a time; what gathers meanwhile, and for the rest of the pace's interval, goes with the next. Ends with
/// `ended`: whoever waits for a report then, or comes later, goes on without it.
pub(crate) async fn send_reports(
    context: Arc<Context>,
    mut queue: mpsc::Receiver<Report>,
    ended: CancellationToken,
) {
    let mut waiting = Vec::with_capacity(REPORTS_PER_TRIP);
    let mut pace = Pace::new(REPORTS_PACE);
    loop {
        if let Some(at) = pace.next() {
            tokio::time::sleep_until(at).await;
        }
        let received = queue.recv_many(&mut waiting, REPORTS_PER_TRIP);
        let Some(1..) = ended.run_until_cancelled(received).await else {
            return;
        };
        pace.started();
        let (batch, callers): (Vec<_>, Vec<_>) = waiting.drain(..).unzip();
        // Those that wait go on when this ends, however it does.
        let trip = AssertUnwindSafe(trip(&context, &batch)).catch_unwind();
        match ended.run_until_cancelled(trip).await {
            None => return,
            Some(Err(_)) => tracing::error!("sending reports panicked"),
            Some(Ok(())) => {}
        }
        for caller in callers {
            let _ = caller.send(());
        }
    }
}

async fn trip(context: &Context, batch: &[FinishReport]) {
    match context.deps.limits.finish(batch).await {
        Ok(changes) => {
            for (report, change) in batch.iter().zip(changes) {
                announce(context, report, change);
            }
        }
        Err(error) => {
            context.deps.metrics.limits_fallback("finish");
            tracing::warn!(error = %error_chain(&error), "done marks were not written");
        }
    }
}

fn announce(context: &Context, report: &FinishReport, change: BreakerChange) {
    match change {
        BreakerChange::None => {}
        BreakerChange::Opened(time) => {
            context.deps.metrics.breaker_opened();
            tracing::warn!(endpoint.id = %report.endpoint, breaker.open_seconds = time.as_secs(), "a breaker opened");
        }
        BreakerChange::Closed => tracing::info!(endpoint.id = %report.endpoint, "a breaker closed"),
    }
}

impl Reports {
    async fn send(&self, report: FinishReport) {
        let (done, wait) = oneshot::channel();
        if self.0.send((report, done)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

/// The outcome of a run without an attempt.
pub(crate) fn no_attempt(job: &Job, next: Next) -> Outcome {
    Outcome {
        delivery: job.delivery,
        message: job.message.id,
        endpoint: job.endpoint,
        app: job.message.app,
        run: job.run,
        attempts: job.attempts,
        trigger: job.trigger,
        at: UnixMillis::now(),
        attempt: None,
        next,
    }
}

/// Ends a delivery's run here with an outcome that an attempt made.
pub(crate) async fn tried(context: &Arc<Context>, job: &Job, outcome: Outcome, signal: Signal) {
    let mark = outcome
        .attempt
        .is_some()
        .then(|| postrider_wire::encode_outcome(&outcome));
    let report = FinishReport {
        app: outcome.app,
        endpoint: outcome.endpoint,
        delivery: outcome.delivery,
        run: outcome.run,
        probe: job.probe,
        mark,
        signal,
    };
    tokio::join!(context.reports.send(report), journal(context, outcome));
    postrider_failpoint::hit("worker.after_outcome");
    settle(context, job).await;
}

/// Ends a delivery's run here without an attempt.
pub(crate) async fn untried(context: &Arc<Context>, job: &Job, next: Next) {
    let outcome = no_attempt(job, next);
    let signal = match next {
        Next::Deferred {
            reason: DeferReason::Rate | DeferReason::Queue,
            ..
        } => Signal::Backlogged,
        _ => Signal::Neutral,
    };
    if let Next::Deferred { reason, .. } = next {
        context.deps.metrics.deferred(reason.as_str());
    }
    // A probe that was not made gives its lease back.
    if job.probe || signal == Signal::Backlogged {
        let report = FinishReport {
            app: outcome.app,
            endpoint: outcome.endpoint,
            delivery: outcome.delivery,
            run: outcome.run,
            probe: job.probe,
            mark: None,
            signal,
        };
        context.reports.send(report).await;
    }
    journal(context, outcome).await;
    settle(context, job).await;
}

/// Journals the outcome that a done mark held.
pub(crate) async fn again(context: &Arc<Context>, job: &Job, outcome: Outcome) {
    journal(context, outcome).await;
    settle(context, job).await;
}

/// Defers what is left of a unit, all of it at once: an `ordered` run's deliveries keep their sequence in the store.
pub(crate) async fn defer_unit(context: &Arc<Context>, unit: Unit, reason: DeferReason, delay: Duration) {
    let steps = unit.into_steps().into_iter().map(|step| async move {
        match step {
            Step::Try(work) => untried(context, &work.job, Next::Deferred { reason, delay }).await,
            Step::Marked(outcome, job) => again(context, &job, *outcome).await,
        }
    });
    join_all(steps).await;
}

async fn settle(context: &Context, job: &Job) {
    for share in context.active.end((job.delivery, job.run)) {
        share.settle().await;
    }
}

/// Publishes an outcome until the journal takes it. There is no bound: giving up would lose it, the delivery's slot
/// stays taken meanwhile, and no attempt starts while the broker is down.
async fn journal(context: &Context, outcome: Outcome) {
    let record = Record::Outcome(Box::new(outcome));
    let mut delay = Duration::from_millis(50);
    loop {
        match context.deps.journal.publish(vec![record.clone()]).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "an outcome was not taken; trying again");
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(5));
    }
}

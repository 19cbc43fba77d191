//! Outcomes out. Whoever ends a delivery's run here hands it over and is done with it: it waits in a bounded queue, and
//! [`batch`] ends what waits there together. The done marks and the breakers' signals go to the limits, the outcomes to
//! the journal, both at once; then the shares are settled.
//!
//! A delivery moves with its [`Duty`], so that the drain waits for it, and a batch that panics gives its deliveries up.

pub(crate) mod batch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider_limits::{FinishReport, Signal};
use postrider_model::{DeferReason, Job, Next, Outcome, Record, UnixMillis};

use crate::attempt::Tried;
use crate::duty::Duty;
use crate::run::Context;
use crate::trace::Trace;
use crate::unit::{Step, Work};

/// A delivery whose run ends here, on its way to the limits and the journal.
pub(crate) struct Ended {
    record: Record,
    report: Option<FinishReport>,
    /// The same mark for the first run, whose frame may still come: see [`of_first_run`].
    for_first_run: Option<FinishReport>,
    duty: Duty,
    /// Ends with the settlement.
    trace: Option<Trace>,
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
pub(crate) async fn tried(context: &Context, work: Work, tried: Tried, duty: Duty) {
    let Tried { outcome, signal, .. } = tried;
    count_deferred(context, outcome.next);
    let mark = outcome
        .attempt
        .is_some()
        .then(|| postrider_wire::encode_outcome(&outcome));
    let report = FinishReport {
        mark,
        ..no_mark(&work.job, signal)
    };
    let ended = Ended {
        for_first_run: of_first_run(&work.job, &report),
        report: Some(report),
        record: Record::Outcome(Box::new(outcome)),
        duty,
        trace: Some(work.trace),
    };
    hand_over(context, ended).await;
}

/// Ends a delivery's run here without an attempt.
pub(crate) async fn untried(context: &Context, job: &Job, next: Next, duty: Duty) {
    let signal = match next {
        Next::Deferred {
            reason: DeferReason::Rate,
            ..
        } => Signal::Backlogged,
        Next::Deferred {
            reason: DeferReason::Queue,
            ..
        } => queued(context, job),
        _ => Signal::Neutral,
    };
    count_deferred(context, next);
    // A probe that was not made gives its lease back.
    let tells = job.probe || signal != Signal::Neutral;
    let ended = Ended {
        record: Record::Outcome(Box::new(no_attempt(job, next))),
        report: tells.then(|| no_mark(job, signal)),
        for_first_run: None,
        duty,
        trace: None,
    };
    hand_over(context, ended).await;
}

fn count_deferred(context: &Context, next: Next) {
    if let Next::Deferred { reason, .. } = next {
        context.deps.metrics.deferred(reason.as_str());
    }
}

/// The first attempt's mark stands for the first run too when that one was given back to the store untried: a producer that
/// got no confirm sends its message again, and so the first run's frame comes again after a later run was made. What is
/// `ordered` has no frame before the store's.
fn of_first_run(job: &Job, report: &FinishReport) -> Option<FinishReport> {
    let is_first_attempt = job.run > 0 && job.attempts == 0 && !job.ordered && report.mark.is_some();
    is_first_attempt.then(|| FinishReport {
        run: 0,
        probe: false,
        signal: Signal::Neutral,
        ..report.clone()
    })
}

/// What a delivery says about its endpoint for which there was no room. One that takes nothing is left alone, half as long
/// as it has taken nothing: it is asked more and more rarely while it hangs, and what waits for it stays in the store
/// meanwhile.
fn queued(context: &Context, job: &Job) -> Signal {
    match context.board.lock().stalled(job.endpoint, Instant::now()) {
        Some(stalled) => Signal::Stalled(stalled / 2),
        None => Signal::Backlogged,
    }
}

/// Journals the outcome that a done mark held.
pub(crate) async fn again(context: &Context, outcome: Box<Outcome>, duty: Duty) {
    let ended = Ended {
        record: Record::Outcome(outcome),
        report: None,
        for_first_run: None,
        duty,
        trace: None,
    };
    hand_over(context, ended).await;
}

/// Defers what is left of a unit, all of it at once: an `ordered` run's deliveries keep their sequence in the store.
pub(crate) async fn defer_all(
    context: &Arc<Context>,
    steps: Vec<(Step, Duty)>,
    reason: DeferReason,
    delay: Duration,
) {
    for (step, duty) in steps {
        match step {
            Step::Try(work) => untried(context, &work.job, Next::Deferred { reason, delay }, duty).await,
            Step::Marked(outcome, _) => again(context, outcome, duty).await,
        }
    }
}

fn no_mark(job: &Job, signal: Signal) -> FinishReport {
    FinishReport {
        app: job.message.app,
        endpoint: job.endpoint,
        delivery: job.delivery,
        run: job.run,
        probe: job.probe,
        mark: None,
        signal,
    }
}

/// Waits while as many outcomes wait as deliveries may be held: the broker is away, and nothing starts anyway. After
/// the worker's end nobody takes it, and its duty gives the delivery up.
async fn hand_over(context: &Context, ended: Ended) {
    let _ = context.ended.send(ended).await;
}

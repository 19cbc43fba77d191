//! What takes one turn on the board: a delivery, or an `ordered` endpoint's run, sent one after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider_model::{AppId, DeferReason, EndpointId, Job, Next, Outcome};
use tokio_util::task::TaskTracker;

use crate::attempt::{Tried, attempt, timeout};
use crate::board::{Started, Verdict};
use crate::classify::LEASE_OVER_DELAY;
use crate::duty::{Duty, Seat, key};
use crate::finish;
use crate::run::Context;
use crate::target::Target;
use crate::trace::Trace;

/// Longest that an `ordered` run goes on; the rest of it returns to the store.
const RUN_MAX: Duration = Duration::from_secs(20);
/// The same while room is short: others wait to be taken back too.
const RUN_MAX_WHEN_SHORT: Duration = Duration::from_secs(1);
/// What is left of a lease when a run stops, for clocks that differ.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// A delivery and where it goes.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) job: Job,
    pub(crate) target: Arc<Target>,
    pub(crate) trace: Trace,
}

/// One step of a unit.
#[derive(Debug)]
pub(crate) enum Step {
    /// To be tried.
    Try(Work),
    /// Done before; its outcome is to be journaled again.
    Marked(Box<Outcome>, Job),
}

impl Step {
    fn job(&self) -> &Job {
        match self {
            Self::Try(work) => &work.job,
            Self::Marked(_, job) => job,
        }
    }

    fn taken_on(self, context: &Arc<Context>) -> (Self, Duty) {
        let duty = Duty::new(context, self.job());
        (self, duty)
    }
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
    /// Takes the steps on: what comes off the board has somebody to answer for it.
    pub(crate) fn taken_on(self, context: &Arc<Context>) -> Vec<(Step, Duty)> {
        let steps = match self {
            Self::One(step) => vec![step],
            Self::Run(steps) => steps,
        };
        steps.into_iter().map(|step| step.taken_on(context)).collect()
    }

    /// Whether all of it comes back, since the connection that it came by is gone.
    pub(crate) fn is_void(&self, context: &Context) -> bool {
        let mut steps = self.steps().iter();
        steps.all(|step| context.active.is_void(key(step.job())))
    }

    fn steps(&self) -> &[Step] {
        match self {
            Self::One(step) => std::slice::from_ref(step),
            Self::Run(steps) => steps,
        }
    }

    /// Application, endpoint and host.
    pub(crate) fn place(&self) -> (AppId, EndpointId, u64) {
        let steps = self.steps();
        let host = steps.iter().find_map(|step| match step {
            Step::Try(work) => Some(work.target.host),
            Step::Marked(..) => None,
        });
        let job = steps[0].job();
        (job.message.app, job.endpoint, host.unwrap_or_default())
    }
}

/// Runs a started unit and gives its slot back.
pub(crate) async fn run(context: Arc<Context>, started: Started<Unit>) {
    let Started { unit, slot } = started;
    let mut seat = Seat::new(&context, slot);
    if unit.is_void(&context) {
        drop(unit.taken_on(&context));
        seat.done(Verdict::Untried);
        return;
    }
    match unit {
        Unit::One(Step::Try(work)) => {
            let duty = Duty::new(&context, &work.job);
            let tried = attempt(&context, &work, &mut seat).await;
            // The endpoint is free for the next one before the outcome is on record.
            seat.done(tried.verdict);
            finish::tried(&context, work, tried, duty).await;
        }
        Unit::One(Step::Marked(outcome, job)) => {
            let duty = Duty::new(&context, &job);
            seat.done(Verdict::Untried);
            finish::again(&context, outcome, duty).await;
        }
        unit @ Unit::Run(_) => {
            let steps = unit.taken_on(&context);
            let verdict = run_in_order(&context, steps, &mut seat).await;
            seat.done(verdict);
        }
    }
}

/// Sends a run serially; stops at the first failure, and defers what it did not come to.
async fn run_in_order(context: &Arc<Context>, steps: Vec<(Step, Duty)>, seat: &mut Seat) -> Verdict {
    let started = Instant::now();
    let mut verdict = Verdict::Untried;
    let mut going = true;
    let mut has_sent = false;
    let mut left = Vec::new();
    let mut rest = Duration::ZERO;
    // The next one does not wait for the confirm: what arrived has arrived in order, and nothing of the endpoint is
    // leased again until every outcome of the run is recorded.
    let outcomes = TaskTracker::new();
    for (step, duty) in steps {
        match step {
            Step::Marked(outcome, _) => {
                going &= outcome.next == Next::Delivered;
                finish::again(context, outcome, duty.watched_by(&outcomes)).await;
            }
            Step::Try(work) => {
                if going && lease_ends(context, &work) {
                    going = false;
                    // Nothing went, so the lease was too short from the start.
                    if !has_sent {
                        context.clock.doubt();
                        rest = LEASE_OVER_DELAY;
                    }
                }
                going &= started.elapsed() < run_max(context) && !context.is_stopping();
                if !going {
                    left.push((Step::Try(work), duty));
                    continue;
                }
                has_sent = true;
                seat.begin();
                let tried = attempt(context, &work, seat).await;
                verdict = tried.verdict;
                going = goes_on(&work, &tried);
                finish::tried(context, work, tried, duty.watched_by(&outcomes)).await;
            }
        }
    }
    // One whose batch panicked has been given up.
    outcomes.close();
    outcomes.wait().await;
    finish::defer_all(context, left, DeferReason::Ordered, rest).await;
    verdict
}

fn run_max(context: &Context) -> Duration {
    if context.room.is_short() {
        RUN_MAX_WHEN_SHORT
    } else {
        RUN_MAX
    }
}

/// Whether the lease may end before an attempt does, by the store's clock.
fn lease_ends(context: &Context, work: &Work) -> bool {
    let needed = LEASE_MARGIN + timeout(context, &work.target);
    work.job
        .lease_until
        .is_some_and(|until| context.clock.now().plus(needed) > until)
}

fn goes_on(work: &Work, tried: &Tried) -> bool {
    let skipped = matches!(tried.outcome.next, Next::Exhausted { gone: false })
        && work.target.endpoint.on_exhausted == postrider_model::ExhaustedPolicy::Skip;
    tried.outcome.next == Next::Delivered || skipped
}

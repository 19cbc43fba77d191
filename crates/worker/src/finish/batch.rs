//! Ended deliveries in batches: one publish, one trip to the limits and one round of acknowledgements for each.
//!
//! A lonely delivery's batch starts at once. The next one starts an interval later, with all that came meanwhile; a few
//! are on their way at once, so that a slow confirm does not stop the flow. The limits fail open; the journal is tried
//! until it takes the batch, which does not hold up the next ones' done marks: while the broker is away they are what keeps
//! a delivery that comes back to another worker from being sent again. A panic ends its own batch alone.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use postrider_broker::{Health, Pace};
use postrider_limits::{BreakerChange, FinishReport};
use postrider_model::Record;
use postrider_telemetry::error_chain;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Ended;
use crate::envelope;
use crate::run::Context;

/// Time between the beats on which batches start, unless one is full: nobody waits for an outcome, and each batch costs
/// the broker about as much as an envelope. A multiple of the journal's own pace, which therefore adds nothing.
const PACE: Duration = Duration::from_millis(12);
/// Deliveries of one batch: a frame's worth.
const BATCH_MAX: usize = 512;
/// Batches on their way at once, without those that the journal refused once: these are bounded by the deliveries that a
/// worker holds.
const BATCHES_MAX: usize = 4;
/// Reports of one trip to the limits.
const REPORTS_PER_TRIP: usize = 256;

/// Takes from the queue until `ended`; what is not settled by then is given up.
pub(crate) async fn run(context: Arc<Context>, mut queue: mpsc::Receiver<Ended>, ended: CancellationToken) {
    let mut batches = JoinSet::new();
    ended
        .run_until_cancelled(take(&context, &mut queue, &mut batches))
        .await;
    batches.shutdown().await;
}

async fn take(context: &Arc<Context>, queue: &mut mpsc::Receiver<Ended>, batches: &mut JoinSet<()>) {
    // In process the store's commit gathers, and it confirms: a pace would only add to it.
    let is_durable = context.deps.broker.is_durable();
    let mut pace = Pace::new(if is_durable { PACE } else { Duration::ZERO });
    let places = Arc::new(Semaphore::new(BATCHES_MAX));
    loop {
        // Never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        while batches.try_join_next().is_some() {}
        if let Some(at) = pace.next() {
            tokio::time::sleep_until(at).await;
        }
        let mut batch = Vec::new();
        if queue.recv_many(&mut batch, BATCH_MAX).await == 0 {
            return;
        }
        pace.started();
        if batch.len() == BATCH_MAX {
            pace.reset();
        }
        batches.spawn(end(context.clone(), batch, place));
    }
}

async fn end(context: Arc<Context>, batch: Vec<Ended>, place: OwnedSemaphorePermit) {
    let mut records = Vec::with_capacity(batch.len());
    let mut reports = Vec::with_capacity(batch.len());
    let mut held = Vec::with_capacity(batch.len());
    for ended in batch {
        records.push(ended.record);
        reports.extend(ended.report.into_iter().chain(ended.for_first_run));
        held.push((ended.duty, ended.trace));
    }
    let mut place = Some(place);
    tokio::join!(
        report(&context, &reports),
        journal(&context, &records, &mut place)
    );
    postrider_failpoint::hit("worker.after_outcome");
    envelope::settle(held.iter_mut().flat_map(|(duty, _)| duty.end())).await;
}

/// Tells the limits. A panic of theirs is a failure like any other.
async fn report(context: &Context, reports: &[FinishReport]) {
    for portion in reports.chunks(REPORTS_PER_TRIP) {
        let trip = AssertUnwindSafe(trip(context, portion)).catch_unwind();
        if trip.await.is_err() {
            tracing::error!("sending reports panicked");
        }
    }
}

async fn trip(context: &Context, reports: &[FinishReport]) {
    match context.deps.limits.finish(reports).await {
        Ok(changes) => {
            for (report, change) in reports.iter().zip(changes) {
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
            let open_seconds = time.as_secs();
            if report.probe {
                tracing::info!(endpoint.id = %report.endpoint, breaker.open_seconds = open_seconds, "a breaker stays open");
            } else {
                context.deps.metrics.breaker_opened();
                tracing::warn!(endpoint.id = %report.endpoint, breaker.open_seconds = open_seconds, "a breaker opened");
            }
        }
        BreakerChange::Closed => tracing::info!(endpoint.id = %report.endpoint, "a breaker closed"),
    }
}

/// Publishes outcomes until the journal takes them, all of them each time: a fact that comes twice changes nothing.
/// There is no bound: giving up would lose them, what waits behind them is bounded, and no attempt starts while the
/// broker is down. The batch gives its place up with the first refusal.
async fn journal(context: &Context, records: &[Record], place: &mut Option<OwnedSemaphorePermit>) {
    let mut delay = Duration::from_millis(50);
    loop {
        match context.deps.journal.publish(records.to_vec()).await {
            Ok(()) => return,
            Err(error) => {
                let (outcomes, error) = (records.len(), error_chain(&error));
                tracing::warn!(outcomes, %error, "outcomes were not taken; trying again");
            }
        }
        place.take();
        rest(context, delay).await;
        delay = (delay * 2).min(Duration::from_secs(5));
    }
}

/// Waits so long, or until a broker that is away is back.
async fn rest(context: &Context, delay: Duration) {
    let mut health = context.deps.broker.health();
    if *health.borrow_and_update() == Health::Up {
        tokio::time::sleep(delay).await;
    } else {
        let back = async {
            if health.wait_for(|health| *health == Health::Up).await.is_err() {
                // Nobody tells any more.
                std::future::pending::<()>().await;
            }
        };
        // The end of either wait is good.
        let _ = tokio::time::timeout(delay, back).await;
    }
}

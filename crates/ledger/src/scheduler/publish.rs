//! Leased jobs go to the broker, each at its time.
//!
//! What was surely not published is given back, with the probe lease of a breaker if it has one. What may have been
//! published is published again as the same run, which workers recognise.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use postrider_broker::{PublishError, Queue};
use postrider_limits::{FinishReport, Signal};
use postrider_model::{AppId, DeliveryId, EndpointId, Job};
use postrider_store::LeasedJob;
use postrider_telemetry::error_chain;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{Context, poison};

/// Bytes of bodies of one round that are published at once, if they are of several deliveries.
const PORTION_BYTES: usize = 8 * 1024 * 1024;
/// Jobs of one round that are published at once: a fifth of what a publisher takes for one queue.
const PORTION_JOBS: usize = 4096;
/// How soon a job that could not be published is due again.
const GIVE_BACK: Duration = Duration::from_millis(500);
/// Rounds whose jobs are being published while the next one is made.
const PUBLISHING_MAX: usize = 32;
/// Jobs that are to go out within such a time go together, at its end.
const TOGETHER: Duration = Duration::from_millis(10);

/// Publications under way.
pub(super) struct Publishing {
    tasks: TaskTracker,
    room: Arc<Semaphore>,
}

impl Publishing {
    pub(super) fn new() -> Self {
        Self {
            tasks: TaskTracker::new(),
            room: Arc::new(Semaphore::new(PUBLISHING_MAX)),
        }
    }

    /// Waits for what is under way.
    pub(super) async fn end(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Publishes what was granted at a time; returns at once while there is room. The next round does not wait for the
    /// confirms of this one.
    pub(super) async fn start(&self, context: &Arc<Context>, granted_at: Instant, planned: Planned) {
        let permit = self.room.clone().acquire_owned().await;
        let context = context.clone();
        self.tasks.spawn(async move {
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

    /// Journals the end of deliveries that kill the process.
    pub(super) fn spawn_park(&self, context: &Arc<Context>, fatal: Vec<LeasedJob>) {
        let context = context.clone();
        self.tasks
            .spawn(async move { poison::park(&context, fatal).await });
    }
}

/// When the jobs of a grant go out, in their order, counted from the grant; at once where it says nothing.
pub(super) type Times = Vec<Duration>;

/// Jobs by when they go out, counted from the grant.
pub(super) type Planned = BTreeMap<Duration, Vec<Job>>;

/// Spreads jobs over their times.
pub(super) fn plan(
    jobs: impl Iterator<Item = Job>,
    times: impl Iterator<Item = (EndpointId, Times)>,
) -> Planned {
    let mut times: HashMap<EndpointId, std::vec::IntoIter<Duration>> = times
        .map(|(endpoint, times)| (endpoint, times.into_iter()))
        .collect();
    let mut planned = Planned::new();
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

/// Publishes leased jobs; an `ordered` run stays together.
async fn publish(context: &Context, jobs: Vec<Job>) {
    for portion in portions(jobs, PORTION_JOBS, PORTION_BYTES) {
        publish_portion(context, portion).await;
    }
}

/// Cuts jobs into portions of at most about `count` jobs and `bytes` of bodies, one after another: all at once could be
/// more than a publisher ever takes, and would then be leased and given back for ever. An `ordered` run is not cut.
fn portions(jobs: Vec<Job>, count: usize, bytes: usize) -> Vec<Vec<Job>> {
    let mut portions: Vec<Vec<Job>> = Vec::new();
    let mut held = 0;
    for job in jobs {
        let size = job.message.payload.len();
        let goes_on = |last: &Job| job.ordered && last.ordered && last.endpoint == job.endpoint;
        match portions.last_mut() {
            Some(portion)
                if (portion.len() < count && held + size <= bytes) || portion.last().is_some_and(goes_on) =>
            {
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

/// What surely is not out is given back. When that is not known (the connection broke before the confirm), giving the rows
/// back would send them twice, as two runs. The same run is published again instead, which workers recognise; if that
/// takes too long, the leases run out.
async fn publish_portion(context: &Context, jobs: Vec<Job>) {
    let queue = context.deps.jobs.retry_queue();
    let until = Instant::now() + context.settings.lease / 2;
    let failed = failures(context, queue, &jobs).await;
    let (unsent, mut unsure): (Vec<Job>, Vec<Job>) = jobs
        .into_iter()
        .filter(|job| failed.contains_key(&job.delivery))
        .partition(|job| {
            failed
                .get(&job.delivery)
                .is_some_and(|error| error.leaves_nothing())
        });
    give_back(context, &unsent, &failed).await;
    while !unsure.is_empty() {
        let deliveries = unsure.len();
        tracing::warn!(deliveries, "released deliveries were not confirmed");
        if context.stopped_within(GIVE_BACK).await || Instant::now() >= until {
            return;
        }
        let failed = failures(context, queue, &unsure).await;
        unsure.retain(|job| failed.contains_key(&job.delivery));
    }
}

/// Publishes jobs; which were not confirmed, and why.
async fn failures(context: &Context, queue: Queue, jobs: &[Job]) -> HashMap<DeliveryId, PublishError> {
    let failed = context.deps.jobs.publish_each(queue, jobs.to_vec()).await;
    failed.into_iter().collect()
}

/// Ends the leases of jobs that are not out, and those of their breakers' probes.
async fn give_back(context: &Context, jobs: &[Job], failed: &HashMap<DeliveryId, PublishError>) {
    let Some(job) = jobs.first() else { return };
    match failed.get(&job.delivery) {
        // As planned: the queue is bounded.
        Some(PublishError::Full) | None => {}
        Some(error) => {
            tracing::warn!(error = %error_chain(error), deliveries = jobs.len(), "released deliveries were not published");
        }
    }
    let leases: Vec<(DeliveryId, u32)> = jobs.iter().map(|job| (job.delivery, job.run)).collect();
    if let Err(error) = context.deps.store.give_back(&leases, GIVE_BACK).await {
        // Their leases expire by themselves.
        tracing::warn!(error = %error_chain(&error), "leases were not given back");
    }
    let probes: Vec<FinishReport> = jobs
        .iter()
        .filter(|job| job.probe)
        .map(|job| no_probe(job.message.app, job.endpoint, job.delivery, job.run))
        .collect();
    give_probes_back(context, &probes).await;
}

/// Tells the limits that a breaker's probe was not made.
pub(super) fn no_probe(app: AppId, endpoint: EndpointId, delivery: DeliveryId, run: u32) -> FinishReport {
    FinishReport {
        app,
        endpoint,
        delivery,
        run,
        probe: true,
        mark: None,
        signal: Signal::Neutral,
    }
}

/// Gives probe leases back; without the limits they run out.
pub(super) async fn give_probes_back(context: &Context, reports: &[FinishReport]) {
    if reports.is_empty() {
        return;
    }
    if let Err(error) = context.deps.limits.finish(reports).await {
        tracing::warn!(error = %error_chain(&error), "probes that were not made were not given back");
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
    fn a_round_is_published_in_portions_that_cut_no_ordered_run() {
        let endpoint = || EndpointId::generate(UnixMillis(1), &mut rand::rng());
        let (free, first, second) = (endpoint(), endpoint(), endpoint());
        let jobs = [(free, false); 5]
            .into_iter()
            .chain([(first, true); 4])
            .chain([(second, true); 2])
            .map(|(endpoint, ordered)| job(endpoint, ordered, 40))
            .collect();
        let sizes = |jobs, count, bytes| -> Vec<usize> {
            portions(jobs, count, bytes).iter().map(Vec::len).collect()
        };
        assert_eq!(
            sizes(jobs, 10, 100),
            [2, 2, 5, 2],
            "the run of four goes on after the fifth"
        );
        assert_eq!(sizes(vec![job(free, false, 1_000)], 10, 100), [1]);
        let small = |ordered: bool| vec![job(free, ordered, 0); 5];
        assert_eq!(
            sizes(small(false), 2, 100),
            [2, 2, 1],
            "bodies without a byte are bounded too"
        );
        assert_eq!(sizes(small(true), 2, 100), [5]);
    }
}

//! Jobs into frames.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use postrider_model::{DeliveryId, EndpointId, Job, MessageId};
use postrider_telemetry::Metrics;
use postrider_wire::{SizeHint, encode_jobs};
use tokio::time::Instant;

use super::GatherSettings;
use super::confirmed::Confirmed;
use super::lane::{Chunk, Lane};
use super::outlet::Outlet;
use super::room::Reserved;
use crate::{Broker, PublishError, Queue};

/// How long one shard has its turn.
const TURN: Duration = Duration::from_millis(50);

/// Publishes jobs to the `deliver` and `retry` queues of every shard. Cheap to clone; clones share their lanes.
#[derive(Clone)]
pub struct JobPublisher {
    lanes: Arc<Lanes>,
}

struct Lanes {
    made_at: Instant,
    deliver: Vec<Arc<Lane<Job>>>,
    retry: Vec<Arc<Lane<Job>>>,
}

impl JobPublisher {
    /// A publisher with a lane for each queue of `shards` shards.
    pub fn new(broker: Arc<dyn Broker>, settings: GatherSettings, shards: u16) -> Self {
        let outlet = Outlet {
            broker,
            settings,
            metrics: None,
        };
        Self::through(&outlet, shards)
    }

    /// As [`JobPublisher::new`], counting frames and failures.
    pub fn with_metrics(
        broker: Arc<dyn Broker>,
        settings: GatherSettings,
        shards: u16,
        metrics: Arc<Metrics>,
    ) -> Self {
        let outlet = Outlet {
            broker,
            settings,
            metrics: Some(metrics),
        };
        Self::through(&outlet, shards)
    }

    fn through(outlet: &Outlet, shards: u16) -> Self {
        let lanes = |queue: fn(u16) -> Queue| {
            (0..shards)
                .map(|shard| Lane::new(outlet.clone(), queue(shard), encode_jobs))
                .collect()
        };
        Self {
            lanes: Arc::new(Lanes {
                made_at: Instant::now(),
                deliver: lanes(Queue::Deliver),
                retry: lanes(Queue::Retry),
            }),
        }
    }

    /// Shards of the queues.
    pub fn shards(&self) -> u16 {
        u16::try_from(self.lanes.deliver.len()).unwrap_or(u16::MAX)
    }

    /// Names the `deliver` queue for each of some jobs, none of them `ordered`.
    ///
    /// The shards take turns, so that all that is published at one time goes into the same frames: the broker is paid by the
    /// frame, and divided among the shards each would carry a part only. What makes several frames anyway is divided
    /// among all shards, since one lane may have no room for so much.
    #[must_use]
    pub fn deliver_queues(&self, jobs: Vec<Job>) -> Vec<(Queue, Vec<Job>)> {
        let turn = self.turn();
        let Some(lane) = self.lanes.deliver.get(usize::from(turn)) else {
            return vec![(Queue::Deliver(turn), jobs)];
        };
        let settings = lane.settings();
        if fit_together(&jobs, &settings).is_some() {
            return vec![(Queue::Deliver(turn), jobs)];
        }
        let mut divided: BTreeMap<u16, Vec<Job>> = BTreeMap::new();
        for (chunk, shard) in chunks(jobs, &settings).into_iter().zip(self.shards_from(turn)) {
            divided.entry(shard).or_default().extend(chunk.items);
        }
        divided
            .into_iter()
            .map(|(shard, jobs)| (Queue::Deliver(shard), jobs))
            .collect()
    }

    /// The `retry` queue whose turn it is.
    #[must_use]
    pub fn retry_queue(&self) -> Queue {
        Queue::Retry(self.turn())
    }

    /// All shards from this one on, again and again.
    fn shards_from(&self, turn: u16) -> impl Iterator<Item = u16> {
        (turn..self.shards()).chain(0..turn).cycle()
    }

    /// The shard whose turn it is; those of other processes take theirs at other times.
    fn turn(&self) -> u16 {
        let turns = self.lanes.made_at.elapsed().as_nanos() / TURN.as_nanos();
        let shards = self.lanes.deliver.len().max(1);
        u16::try_from(turns % shards as u128).unwrap_or(0)
    }

    /// Takes over jobs; what it returns waits until all are safe, and may be dropped: the jobs then still go out. On an
    /// error some of them may be queued all the same. The ordered jobs of one endpoint stay together in one frame, in their
    /// order, whatever its size. A queue that carries no jobs, or is of no shard of this publisher, is
    /// [`PublishError::Refused`].
    pub fn publish(&self, queue: Queue, jobs: Vec<Job>) -> Confirmed {
        match self.lane(queue) {
            Some(lane) => lane.publish(chunks(jobs, &lane.settings())),
            None => Confirmed::new(Err(PublishError::Refused)),
        }
    }

    /// Takes room for jobs in the queues that [`JobPublisher::deliver_queues`] names, to publish them later.
    ///
    /// # Errors
    /// [`PublishError::Full`]: some of them find no room, and nothing is reserved. [`PublishError::Refused`]: the publisher has
    /// no shards.
    pub fn reserve(&self, jobs: Vec<Job>) -> Result<Reserved<Job>, PublishError> {
        let mut rooms = Vec::with_capacity(1);
        for (queue, jobs) in self.deliver_queues(jobs) {
            let lane = self.lane(queue).ok_or(PublishError::Refused)?;
            rooms.push(lane.reserve(chunks(jobs, &lane.settings()))?);
        }
        Ok(Reserved(rooms))
    }

    /// As [`JobPublisher::publish`], and tells which deliveries were not confirmed and why: those of a frame succeed or
    /// fail together, and a call may take several frames. With [`PublishError::Full`] of an in-process queue these, and
    /// no others, are not queued.
    pub async fn publish_each(&self, queue: Queue, jobs: Vec<Job>) -> Vec<(DeliveryId, PublishError)> {
        let Some(lane) = self.lane(queue) else {
            let refused = jobs.iter().map(|job| (job.delivery, PublishError::Refused));
            return refused.collect();
        };
        let chunks = chunks(jobs, &lane.settings());
        let deliveries: Vec<Vec<DeliveryId>> = chunks
            .iter()
            .map(|chunk| chunk.items.iter().map(|job| job.delivery).collect())
            .collect();
        let results = lane.publish_each(chunks).await;
        deliveries
            .into_iter()
            .zip(results)
            .filter_map(|(deliveries, result)| Some((deliveries, result.err()?)))
            .flat_map(|(deliveries, error)| deliveries.into_iter().map(move |delivery| (delivery, error)))
            .collect()
    }

    fn lane(&self, queue: Queue) -> Option<&Arc<Lane<Job>>> {
        match queue {
            Queue::Deliver(shard) => self.lanes.deliver.get(usize::from(shard)),
            Queue::Retry(shard) => self.lanes.retry.get(usize::from(shard)),
            Queue::Journal | Queue::Stray => None,
        }
    }
}

/// The bytes of jobs that go into one frame as they are: mostly all of a call. A body counts once if its jobs stand together.
fn fit_together(jobs: &[Job], settings: &GatherSettings) -> Option<usize> {
    let bodies = jobs.chunk_by(|one, next| one.message.id == next.message.id);
    let bodies = bodies
        .filter_map(|same| same.first())
        .map(|job| job.message.size_hint());
    let bytes = bodies.sum::<usize>() + jobs.iter().map(SizeHint::size_hint).sum::<usize>();
    let fit = jobs.len() == 1 || (jobs.len() <= settings.max_items && bytes <= settings.max_bytes);
    (fit && !jobs.is_empty()).then_some(bytes)
}

/// Cuts the jobs of one call into what goes into a frame together. A body counts once in each.
fn chunks(jobs: Vec<Job>, settings: &GatherSettings) -> Vec<Chunk<Job>> {
    if let Some(bytes) = fit_together(&jobs, settings) {
        return vec![Chunk { items: jobs, bytes }];
    }
    let mut chunks: Vec<Chunk<Job>> = Vec::new();
    let mut bodies: HashSet<MessageId> = HashSet::new();
    for unit in units(jobs) {
        let jobs_bytes: usize = unit.iter().map(SizeHint::size_hint).sum();
        let new_bodies = bodies_bytes(&unit, &bodies);
        let added = jobs_bytes + new_bodies;
        // Apart, each that shares a large body would carry it once more.
        let joins = |chunk: &Chunk<Job>| {
            chunk.fits(unit.len(), added, settings)
                || (new_bodies == 0 && chunk.has_room(unit.len(), settings))
        };
        match chunks.last_mut() {
            Some(chunk) if joins(chunk) => {
                bodies.extend(unit.iter().map(|job| job.message.id));
                chunk.items.extend(unit);
                chunk.bytes += added;
            }
            _ => {
                bodies.clear();
                let bytes = jobs_bytes + bodies_bytes(&unit, &bodies);
                bodies.extend(unit.iter().map(|job| job.message.id));
                chunks.push(Chunk { items: unit, bytes });
            }
        }
    }
    chunks
}

/// Bytes of the unit's bodies that are not `known` yet.
fn bodies_bytes(unit: &[Job], known: &HashSet<MessageId>) -> usize {
    if let [job] = unit {
        return if known.contains(&job.message.id) {
            0
        } else {
            job.message.size_hint()
        };
    }
    let mut seen = HashSet::new();
    unit.iter()
        .filter(|job| !known.contains(&job.message.id) && seen.insert(job.message.id))
        .map(|job| job.message.size_hint())
        .sum()
}

/// Single jobs, and the ordered jobs of one endpoint as one.
fn units(jobs: Vec<Job>) -> Vec<Vec<Job>> {
    let mut units: Vec<Vec<Job>> = Vec::with_capacity(jobs.len());
    let mut runs: HashMap<EndpointId, usize> = HashMap::new();
    for job in jobs {
        if !job.ordered {
            units.push(vec![job]);
            continue;
        }
        let place = *runs.entry(job.endpoint).or_insert(units.len());
        match units.get_mut(place) {
            Some(run) => run.push(job),
            None => units.push(vec![job]),
        }
    }
    units
}

//! Room for what this process holds, in jobs and in bytes. A frame takes it before its jobs go on and gives it back with
//! its acknowledgement; what finds none stays in the broker.
//!
//! What comes back from the store never has all of it: an `ordered` run keeps its frame's room for as long as it goes on,
//! and what is new must not wait for that.

use std::sync::Arc;

use postrider_broker::Queue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Unit in which bytes are counted.
const UNIT: usize = 1024;

/// A frame's room. Given back when dropped.
pub(crate) type Taken = Vec<OwnedSemaphorePermit>;

#[derive(Debug)]
pub(crate) struct Room {
    all: Part,
    /// Of `all`, what may be taken for the `retry` queues: three quarters.
    returned: Part,
}

#[derive(Debug)]
struct Part {
    jobs: Bound,
    units: Bound,
}

#[derive(Debug)]
struct Bound {
    max: usize,
    free: Arc<Semaphore>,
}

impl Room {
    pub(crate) fn new(jobs_max: usize, bytes_max: usize) -> Self {
        let units_max = bytes_max / UNIT;
        let quarters = |max: usize| max - max / 4;
        Self {
            all: Part::new(jobs_max, units_max),
            returned: Part::new(quarters(jobs_max), quarters(units_max)),
        }
    }

    /// Waits until there is room for a frame of this queue. One that is larger than all that it may have takes all of that.
    pub(crate) async fn take(&self, queue: Queue, jobs: usize, bytes: usize) -> Taken {
        let is_returned = matches!(queue, Queue::Retry(_));
        let most = if is_returned { &self.returned } else { &self.all };
        let (jobs, units) = (jobs.min(most.jobs.max), bytes.div_ceil(UNIT).min(most.units.max));
        let mut taken = Taken::with_capacity(4);
        if is_returned {
            self.returned.take(jobs, units, &mut taken).await;
        }
        self.all.take(jobs, units, &mut taken).await;
        taken
    }

    /// Whether most of what may come back from the store is here, so that the next of it may have to wait.
    pub(crate) fn is_short(&self) -> bool {
        [&self.returned.jobs, &self.returned.units]
            .into_iter()
            .any(|bound| bound.free.available_permits() < bound.max / 2)
    }

    /// Jobs that have room.
    pub(crate) fn jobs(&self) -> usize {
        let jobs = &self.all.jobs;
        jobs.max.saturating_sub(jobs.free.available_permits())
    }
}

impl Part {
    fn new(jobs: usize, units: usize) -> Self {
        Self {
            jobs: Bound::new(jobs),
            units: Bound::new(units),
        }
    }

    async fn take(&self, jobs: usize, units: usize, taken: &mut Taken) {
        self.jobs.take(jobs, taken).await;
        self.units.take(units, taken).await;
    }
}

impl Bound {
    fn new(max: usize) -> Self {
        Self {
            max,
            free: Arc::new(Semaphore::new(max)),
        }
    }

    async fn take(&self, wanted: usize, taken: &mut Taken) {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        // An error says that it is closed, which it never is.
        taken.extend(self.free.clone().acquire_many_owned(wanted).await.ok());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const FRESH: Queue = Queue::Deliver(0);
    const RETURNED: Queue = Queue::Retry(0);

    #[test]
    fn what_comes_back_leaves_room_for_what_is_new() {
        let room = Room::new(8, 8 * UNIT);
        let take = |queue, jobs, bytes| room.take(queue, jobs, bytes).now_or_never();
        assert!(!room.is_short());
        // By its jobs, and by its bytes.
        for (jobs, bytes) in [(6, 1), (1, 6 * UNIT), (100, 100 * UNIT)] {
            let returned = take(RETURNED, jobs, bytes).expect("there is room");
            assert!(room.is_short());
            assert!(take(RETURNED, 1, 1).is_none(), "{jobs} jobs, {bytes} bytes");
            let fresh = take(FRESH, 2, 2 * UNIT).expect("a quarter is for what is new");
            drop((returned, fresh));
            assert_eq!(room.jobs(), 0);
        }
        let all = take(FRESH, 100, 100 * UNIT).expect("what is new may have all of it");
        assert_eq!(room.jobs(), 8);
        assert!(take(RETURNED, 1, 1).is_none());
        drop(all);
        assert!(take(RETURNED, 1, 1).is_some());
    }
}

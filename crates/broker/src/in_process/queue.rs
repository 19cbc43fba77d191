//! One queue: what is ready, what is handed out, and who may take.

use std::collections::btree_map::Entry::Occupied;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::QueueLook;

/// A handed-out frame.
pub(super) struct Taken {
    pub(super) place: u64,
    pub(super) frame: Bytes,
    pub(super) delivery_count: u32,
}

/// What became of a push.
pub(super) enum Push {
    Queued,
    Full,
    /// Larger than the queue's whole bound.
    NeverFits,
    Closed,
}

struct Entry {
    /// Where it stands in the order of publishing.
    place: u64,
    frame: Bytes,
    delivery_count: u32,
    /// Tells a publisher of the journal.
    done: Option<oneshot::Sender<()>>,
}

struct State {
    ready: VecDeque<Entry>,
    /// By place, with the consumer that holds it.
    taken: BTreeMap<u64, (u64, Entry)>,
    /// In the order of subscribing.
    consumers: VecDeque<u64>,
    next_place: u64,
    next_consumer: u64,
    bytes: usize,
    closed: bool,
}

impl State {
    /// What was handed out under this place, if this consumer still holds it.
    fn returned_by(&mut self, consumer: u64, place: u64) -> Option<Entry> {
        match self.taken.entry(place) {
            Occupied(held) if held.get().0 == consumer => Some(held.remove().1),
            _ => None,
        }
    }

    /// Where it was in the order of publishing, counted as returned.
    fn take_back(&mut self, mut entry: Entry) {
        entry.delivery_count += 1;
        let at = self.ready.partition_point(|other| other.place < entry.place);
        self.ready.insert(at, entry);
    }
}

struct Inner {
    max_frames: usize,
    max_bytes: usize,
    /// Only the oldest consumer gets frames.
    exclusive: bool,
    state: Mutex<State>,
    /// Ticks on every change that may let a consumer or a publisher go on.
    changed: watch::Sender<()>,
}

/// A queue that its consumers and publishers share.
#[derive(Clone)]
pub(super) struct SharedQueue(Arc<Inner>);

impl SharedQueue {
    pub(super) fn new(max_frames: usize, max_bytes: usize, exclusive: bool) -> Self {
        Self(Arc::new(Inner {
            max_frames,
            max_bytes,
            exclusive,
            state: Mutex::new(State {
                ready: VecDeque::new(),
                taken: BTreeMap::new(),
                consumers: VecDeque::new(),
                next_place: 0,
                next_consumer: 0,
                bytes: 0,
                closed: false,
            }),
            changed: watch::channel(()).0,
        }))
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    pub(super) fn push(&self, frame: Bytes, done: Option<oneshot::Sender<()>>) -> Push {
        if frame.len() > self.0.max_bytes {
            return Push::NeverFits;
        }
        let mut state = self.0.state.lock();
        if state.closed {
            return Push::Closed;
        }
        if state.ready.len() + state.taken.len() >= self.0.max_frames
            || state.bytes + frame.len() > self.0.max_bytes
        {
            return Push::Full;
        }
        state.bytes += frame.len();
        let place = state.next_place;
        state.next_place += 1;
        state.ready.push_back(Entry {
            place,
            frame,
            delivery_count: 0,
            done,
        });
        drop(state);
        self.0.changed.send_replace(());
        Push::Queued
    }

    pub(super) fn register(&self) -> u64 {
        let mut state = self.0.state.lock();
        let consumer = state.next_consumer;
        state.next_consumer += 1;
        state.consumers.push_back(consumer);
        consumer
    }

    /// The next frame for this consumer, if it may have one now.
    pub(super) fn take(&self, consumer: u64) -> Option<Taken> {
        let mut state = self.0.state.lock();
        if state.closed || (self.0.exclusive && state.consumers.front() != Some(&consumer)) {
            return None;
        }
        let entry = state.ready.pop_front()?;
        let taken = Taken {
            place: entry.place,
            frame: entry.frame.clone(),
            delivery_count: entry.delivery_count,
        };
        state.taken.insert(entry.place, (consumer, entry));
        Some(taken)
    }

    /// Ends the queue's duty for a frame, if this consumer still holds it.
    pub(super) fn acknowledge(&self, consumer: u64, place: u64) -> bool {
        let mut state = self.0.state.lock();
        let Some(entry) = state.returned_by(consumer, place) else {
            return false;
        };
        state.bytes -= entry.frame.len();
        drop(state);
        if let Some(done) = entry.done {
            // The publisher may have given up waiting.
            let _ = done.send(());
        }
        self.0.changed.send_replace(());
        true
    }

    /// Takes back what the consumer holds, in order, and forgets the consumer.
    pub(super) fn unregister(&self, consumer: u64) {
        let mut state = self.0.state.lock();
        state.consumers.retain(|other| *other != consumer);
        let (held, kept): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut state.taken)
            .into_iter()
            .partition(|(_, (holder, _))| *holder == consumer);
        state.taken = kept;
        for (_, (_, entry)) in held.into_iter().rev() {
            state.take_back(entry);
        }
        drop(state);
        self.0.changed.send_replace(());
    }

    /// Takes one frame back, if this consumer still holds it.
    pub(super) fn give_back(&self, consumer: u64, place: u64) {
        let mut state = self.0.state.lock();
        if let Some(entry) = state.returned_by(consumer, place) {
            state.take_back(entry);
        }
        drop(state);
        self.0.changed.send_replace(());
    }

    pub(super) fn look(&self) -> QueueLook {
        let state = self.0.state.lock();
        QueueLook {
            depth: u64::try_from(state.ready.len() + state.taken.len()).unwrap_or(u64::MAX),
            consumers: u32::try_from(state.consumers.len()).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.state.lock().closed
    }

    /// Wakes everybody: consumers end, waiting publishers fail.
    pub(super) fn close(&self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        let State { ready, taken, .. } = &mut *state;
        for entry in ready.iter_mut().chain(taken.values_mut().map(|(_, entry)| entry)) {
            entry.done = None;
        }
        drop(state);
        self.0.changed.send_replace(());
    }
}

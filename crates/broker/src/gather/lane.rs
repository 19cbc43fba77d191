//! One queue's waiting calls and the tasks that turn them into frames.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::confirmed::{Confirm, Confirmed};
use super::outlet::Outlet;
use super::room::Room;
use super::{GatherSettings, Pace};
use crate::{PublishError, Queue};

/// Items of one call that go into one frame together.
pub(super) struct Chunk<T> {
    pub(super) items: Vec<T>,
    pub(super) bytes: usize,
}

impl<T> Chunk<T> {
    /// Whether `items` more of together `bytes` still belong into a frame with these.
    pub(super) fn fits(&self, items: usize, bytes: usize, settings: &GatherSettings) -> bool {
        self.has_room(items, settings) && self.bytes + bytes <= settings.max_bytes
    }

    /// Whether `items` more still belong into a frame with these, whatever their bytes.
    pub(super) fn has_room(&self, items: usize, settings: &GatherSettings) -> bool {
        self.items.len() + items <= settings.max_items
    }
}

/// Items and bytes of chunks.
pub(super) fn size<T>(chunks: &[Chunk<T>]) -> (usize, usize) {
    let items = chunks.iter().map(|chunk| chunk.items.len()).sum();
    let bytes = chunks.iter().map(|chunk| chunk.bytes).sum();
    (items, bytes)
}

struct Waiting<T> {
    chunk: Chunk<T>,
    done: oneshot::Sender<Result<(), PublishError>>,
}

struct State<T> {
    waiting: VecDeque<Waiting<T>>,
    /// Places of the window that are taken; each has a task.
    in_flight: usize,
    /// One of these tasks is about to take a frame; it alone does, so that frames are as full as they can be.
    gathering: bool,
    pace: Pace,
    /// Waiting and unconfirmed.
    items: usize,
    bytes: usize,
}

pub(super) struct Lane<T> {
    outlet: Outlet,
    queue: Queue,
    encode: fn(&[T]) -> Bytes,
    state: Mutex<State<T>>,
}

struct Frame<T> {
    content: Chunk<T>,
    done: Vec<oneshot::Sender<Result<(), PublishError>>>,
}

impl<T: Send + 'static> Lane<T> {
    pub(super) fn new(outlet: Outlet, queue: Queue, encode: fn(&[T]) -> Bytes) -> Arc<Self> {
        let outlet_pace = outlet.settings.pace;
        Arc::new(Self {
            outlet,
            queue,
            encode,
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                in_flight: 0,
                gathering: false,
                pace: Pace::new(outlet_pace),
                items: 0,
                bytes: 0,
            }),
        })
    }

    pub(super) fn settings(&self) -> GatherSettings {
        self.outlet.settings
    }

    /// Takes over the chunks of one call.
    pub(super) fn publish(self: &Arc<Self>, chunks: Vec<Chunk<T>>) -> Confirmed {
        Confirmed::new(self.take_over(chunks))
    }

    /// Publishes the chunks of one call and tells of each what became of it. A chunk is in one frame, whole.
    pub(super) async fn publish_each(
        self: &Arc<Self>,
        chunks: Vec<Chunk<T>>,
    ) -> Vec<Result<(), PublishError>> {
        let count = chunks.len();
        let confirms = match self.take_over(chunks) {
            Ok(confirms) => confirms,
            Err(error) => return vec![Err(error); count],
        };
        let mut results = Vec::with_capacity(count);
        for confirmed in confirms {
            results.push(confirmed.await.unwrap_or(Err(PublishError::Lost)));
        }
        results
    }

    fn take_over(self: &Arc<Self>, chunks: Vec<Chunk<T>>) -> Result<Vec<Confirm>, PublishError> {
        let mut confirms = Vec::with_capacity(chunks.len());
        self.reserve(chunks)?.publish(&mut confirms);
        Ok(confirms)
    }

    /// Takes room for the chunks of one call: for all of them, or none.
    pub(super) fn reserve(self: &Arc<Self>, chunks: Vec<Chunk<T>>) -> Result<Room<T>, PublishError> {
        let (items, bytes) = size(&chunks);
        let mut state = self.state.lock();
        if state.items + items > self.outlet.settings.queue_items
            || state.bytes + bytes > self.outlet.settings.queue_bytes
        {
            drop(state);
            self.outlet.failed(PublishError::Full);
            return Err(PublishError::Full);
        }
        state.items += items;
        state.bytes += bytes;
        drop(state);
        Ok(Room::new(Arc::clone(self), chunks))
    }

    /// Takes over chunks that have room, and adds a confirm for each.
    pub(super) fn enqueue(self: &Arc<Self>, chunks: Vec<Chunk<T>>, confirms: &mut Vec<Confirm>) {
        let mut state = self.state.lock();
        for chunk in chunks {
            let (done, confirmed) = oneshot::channel();
            state.waiting.push_back(Waiting { chunk, done });
            confirms.push(confirmed);
        }
        let begins = state.begin(self.outlet.settings.window);
        drop(state);
        if begins {
            tokio::spawn(Arc::clone(self).send_until_empty());
        }
    }

    /// The task behind one place of the window: sends frame after frame until nothing waits, or another task gathers.
    async fn send_until_empty(self: Arc<Self>) {
        let mut place = Place {
            lane: &self,
            taken: true,
            gathers: true,
        };
        loop {
            self.keep_pace().await;
            let frame = self.next_frame(&mut place);
            let held = Held {
                lane: &self,
                items: frame.content.items.len(),
                bytes: frame.content.bytes,
            };
            let encoded = (self.encode)(&frame.content.items);
            drop(frame.content);
            let result = self.outlet.send(self.queue, encoded, held.items).await;
            drop(held);
            for done in frame.done {
                // The caller may be gone: its frame is out all the same.
                let _ = done.send(result);
            }
            if !place.goes_on() {
                return;
            }
        }
    }

    /// Waits until the next frame may start.
    async fn keep_pace(&self) {
        // Behind what is ready to run now, which may have more to add.
        tokio::task::yield_now().await;
        let at = self.state.lock().pace.next();
        if let Some(at) = at {
            tokio::time::sleep_until(at).await;
        }
    }

    /// Takes what fits into a frame, and starts another task for what does not while the window has room.
    fn next_frame(self: &Arc<Self>, place: &mut Place<'_, T>) -> Frame<T> {
        let settings = &self.outlet.settings;
        let mut frame = Frame {
            content: Chunk {
                items: Vec::new(),
                bytes: 0,
            },
            done: Vec::new(),
        };
        let mut state = self.state.lock();
        while let Some(next) = state.waiting.front()
            && (frame.done.is_empty()
                || frame
                    .content
                    .fits(next.chunk.items.len(), next.chunk.bytes, settings))
        {
            let Some(mut next) = state.waiting.pop_front() else {
                break;
            };
            frame.content.items.append(&mut next.chunk.items);
            frame.content.bytes += next.chunk.bytes;
            frame.done.push(next.done);
        }
        state.gathering = false;
        place.gathers = false;
        let is_full = !state.waiting.is_empty();
        if is_full {
            state.pace.reset();
        } else {
            state.pace.started_with(frame.done.len());
        }
        let begins = is_full && state.begin(settings.window);
        drop(state);
        if begins {
            tokio::spawn(Arc::clone(self).send_until_empty());
        }
        frame
    }
}

impl<T> Lane<T> {
    /// Gives room back.
    pub(super) fn free(&self, items: usize, bytes: usize) {
        let mut state = self.state.lock();
        state.items -= items;
        state.bytes -= bytes;
    }
}

impl<T> State<T> {
    /// Whether a task is to be started: nobody gathers, and the window has a place, which is now taken.
    fn begin(&mut self, window: usize) -> bool {
        let begins = !self.gathering && self.in_flight < window.max(1);
        if begins {
            self.gathering = true;
            self.in_flight += 1;
        }
        begins
    }
}

/// A place of the window. Given back even when its task panics, so that a lane never stalls.
struct Place<'a, T> {
    lane: &'a Lane<T>,
    taken: bool,
    gathers: bool,
}

impl<T> Place<'_, T> {
    /// Whether this task takes another frame. When not, the place is given back under the same lock, so that no call can
    /// slip in between unseen.
    fn goes_on(&mut self) -> bool {
        let mut state = self.lane.state.lock();
        let goes_on = !state.waiting.is_empty() && !state.gathering;
        if goes_on {
            state.gathering = true;
        } else {
            state.in_flight -= 1;
        }
        self.gathers = goes_on;
        self.taken = goes_on;
        goes_on
    }
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        if self.taken {
            let mut state = self.lane.state.lock();
            state.in_flight -= 1;
            state.gathering &= !self.gathers;
        }
    }
}

/// What a frame on its way counts in the lane's bound.
struct Held<'a, T> {
    lane: &'a Lane<T>,
    items: usize,
    bytes: usize,
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.lane.free(self.items, self.bytes);
    }
}

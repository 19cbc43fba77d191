//! The acknowledgements of one channel, gathered: each one is a write to a quorum queue's log, so those that are ready
//! together go as one, `multiple`, as far as nothing older is still out.
//!
//! Guarantee: a frame is acknowledged only after [`Acks::done`] was called for it.

use std::collections::BTreeMap;

use lapin::Acker;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::DeliveryTag;
use parking_lot::Mutex;

/// What a channel has handed out and not acknowledged; at most its prefetch.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    out: Mutex<Out>,
    /// Acknowledgements leave in the order of their tags: the broker closes a channel on which one comes twice, which an
    /// older `multiple` behind a newer one would be. What gets done meanwhile goes with the next.
    sending: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Out {
    frames: BTreeMap<DeliveryTag, Frame>,
    is_over: bool,
}

#[derive(Debug)]
struct Frame {
    acker: Acker,
    is_done: bool,
}

/// An acknowledgement to send.
#[derive(Debug)]
struct Ack {
    acker: Acker,
    multiple: bool,
}

impl Acks {
    /// A frame came.
    pub(crate) fn handed_out(&self, tag: DeliveryTag, acker: Acker) {
        let frame = Frame {
            acker,
            is_done: false,
        };
        self.out.lock().frames.insert(tag, frame);
    }

    /// A frame may be acknowledged, by the next [`Self::send`]. False when the channel has ended.
    pub(crate) fn done(&self, tag: DeliveryTag) -> bool {
        let mut out = self.out.lock();
        match out.frames.get_mut(&tag) {
            Some(frame) => frame.is_done = true,
            None => return false,
        }
        !out.is_over
    }

    /// Whether the channel has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.out.lock().is_over
    }

    /// Acknowledges what is done. False when the channel is gone. Run it to its end: what is done is taken at once and
    /// sent one by one.
    pub(crate) async fn send(&self) -> bool {
        let _turn = self.sending.lock().await;
        let Some(acks) = self.out.lock().take() else {
            return false;
        };
        for ack in acks {
            let options = BasicAckOptions {
                multiple: ack.multiple,
            };
            if !matches!(ack.acker.ack(options).await, Ok(true)) {
                return false;
            }
        }
        true
    }

    /// Has a frame handed out again that is not done. In turn with acknowledgements: a `multiple` behind it must not take it
    /// along.
    pub(crate) async fn give_back(&self, tag: DeliveryTag) {
        let _turn = self.sending.lock().await;
        let acker = self.out.lock().frames.get(&tag).map(|frame| frame.acker.clone());
        let Some(acker) = acker else {
            return;
        };
        let options = BasicNackOptions {
            multiple: false,
            requeue: true,
        };
        // On an error the channel is gone, and the frame comes back with it.
        if matches!(acker.nack(options).await, Ok(true)) {
            self.out.lock().frames.remove(&tag);
        }
    }

    /// The channel has ended: the broker has back what was not acknowledged.
    pub(crate) fn end(&self) {
        let mut out = self.out.lock();
        out.is_over = true;
        out.frames.clear();
    }
}

impl Out {
    /// What is done, in order: one for all before the oldest frame that is still out, then one for each behind it.
    fn take(&mut self) -> Option<Vec<Ack>> {
        if self.is_over {
            return None;
        }
        let oldest_out = self
            .frames
            .iter()
            .find_map(|(tag, frame)| (!frame.is_done).then_some(*tag));
        let mut acks: Vec<Ack> = Vec::new();
        for (tag, frame) in self.frames.extract_if(.., |_, frame| frame.is_done) {
            let before = oldest_out.is_none_or(|oldest| tag < oldest);
            let multiple = before && !acks.is_empty();
            if multiple {
                acks.clear();
            }
            acks.push(Ack {
                acker: frame.acker,
                multiple,
            });
        }
        Some(acks)
    }
}

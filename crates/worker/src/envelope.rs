//! Envelopes held by this worker. A frame is acknowledged once each of its deliveries has a confirmed outcome, and not
//! before: a worker that dies gives back all that it had not finished.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use parking_lot::Mutex;
use postrider_broker::Receipt;
use postrider_model::DeliveryId;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::room::Taken;

/// One delivery's part in its frame. [`settle`] it after the outcome's confirm. Once all parts are settled or dropped,
/// and one was dropped, the frame is given back: it comes again.
#[derive(Debug)]
pub(crate) struct Share(Arc<Envelope>);

#[derive(Debug)]
struct Envelope {
    receipt: Mutex<Option<Receipt>>,
    left: AtomicUsize,
    is_acknowledged: AtomicBool,
    /// Room in this process for the frame's jobs and bytes, given back with the frame.
    room: Mutex<Taken>,
    /// Told when the frame ends unacknowledged: a broker takes frames back only with their subscription, which this one
    /// belongs to.
    give_back: Arc<Notify>,
}

impl Drop for Envelope {
    fn drop(&mut self) {
        // What belongs to a connection that is gone is back already.
        if !*self.is_acknowledged.get_mut() && !self.is_void() {
            self.give_back.notify_one();
        }
    }
}

/// Shares of a frame of `count` deliveries (at least 1). Each subscription has a `give_back` of its own.
pub(crate) fn shares(receipt: Receipt, count: usize, room: Taken, give_back: Arc<Notify>) -> Vec<Share> {
    let envelope = Arc::new(Envelope {
        receipt: Mutex::new(Some(receipt)),
        left: AtomicUsize::new(count),
        is_acknowledged: AtomicBool::new(false),
        room: Mutex::new(room),
        give_back,
    });
    std::iter::repeat_with(|| Share(envelope.clone()))
        .take(count)
        .collect()
}

/// Counts deliveries as done, and acknowledges the frames of which these were the last ones; those of one subscription
/// together.
pub(crate) async fn settle(shares: impl IntoIterator<Item = Share>) {
    let mut done: Vec<Arc<Envelope>> = shares.into_iter().filter_map(Share::counted).collect();
    done.sort_unstable_by_key(|envelope| envelope.subscription());
    let groups = done
        .chunk_by(|one, other| one.subscription() == other.subscription())
        .map(async |together| {
            let receipts: Vec<Receipt> = together
                .iter()
                .filter_map(|envelope| envelope.receipt.lock().take())
                .collect();
            // False means that a frame's connection is gone: it comes back, and the done marks answer for it.
            let _ = Receipt::acknowledge_all(receipts).await;
            for envelope in together {
                envelope.is_acknowledged.store(true, Ordering::Release);
            }
        });
    // One that takes its time does not hold up the others.
    join_all(groups).await;
}

impl Share {
    /// The frame, if this was its last delivery.
    fn counted(self) -> Option<Arc<Envelope>> {
        (self.0.left.fetch_sub(1, Ordering::AcqRel) == 1).then_some(self.0)
    }
}

impl Envelope {
    /// Whether it comes back, whatever becomes of it here.
    fn is_void(&self) -> bool {
        self.receipt.lock().as_ref().is_some_and(Receipt::is_void)
    }

    fn subscription(&self) -> usize {
        Arc::as_ptr(&self.give_back).addr()
    }
}

/// The deliveries at work in this process, so that one that comes back while it is being tried (its connection to the
/// broker broke) is not tried beside itself: its new share joins the old ones.
#[derive(Debug, Default)]
pub(crate) struct Active(Mutex<HashMap<(DeliveryId, u32), Vec<Share>>>);

impl Active {
    /// True when the delivery's run is new here. Otherwise the share waits for the outcome under way.
    pub(crate) fn begin(&self, key: (DeliveryId, u32), share: Share) -> bool {
        match self.0.lock().entry(key) {
            std::collections::hash_map::Entry::Occupied(mut entry) => {
                entry.get_mut().push(share);
                false
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(vec![share]);
                true
            }
        }
    }

    /// Has the permit given back with the delivery's frame.
    pub(crate) fn keep(&self, key: (DeliveryId, u32), permit: OwnedSemaphorePermit) {
        if let Some([share, ..]) = self.0.lock().get(&key).map(Vec::as_slice) {
            share.0.room.lock().push(permit);
        }
    }

    /// Whether it holds a permit of this semaphore until its frame ends.
    pub(crate) fn keeps_permit_of(&self, key: (DeliveryId, u32), semaphore: &Arc<Semaphore>) -> bool {
        let active = self.0.lock();
        let shares = active.get(&key).map(Vec::as_slice).unwrap_or_default();
        shares.iter().any(|share| {
            let room = share.0.room.lock();
            room.iter()
                .any(|permit| Arc::ptr_eq(permit.semaphore(), semaphore))
        })
    }

    /// Takes the shares so that a slow attempt can leave its envelope; the delivery stays active.
    pub(crate) fn leave(&self, key: (DeliveryId, u32)) -> Vec<Share> {
        self.0
            .lock()
            .get_mut(&key)
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Whether every frame of the delivery comes back: it is for whoever gets it then.
    pub(crate) fn is_void(&self, key: (DeliveryId, u32)) -> bool {
        let active = self.0.lock();
        let shares = active.get(&key).map(Vec::as_slice).unwrap_or_default();
        !shares.is_empty() && shares.iter().all(|share| share.0.is_void())
    }

    /// Ends the delivery's run here.
    pub(crate) fn end(&self, key: (DeliveryId, u32)) -> Vec<Share> {
        self.0.lock().remove(&key).unwrap_or_default()
    }

    /// Gives a delivery up: its frames come back. False when it has ended.
    pub(crate) fn give_up(&self, key: (DeliveryId, u32)) -> bool {
        // Dropped without the lock: a frame's end is no short affair.
        let shares = self.0.lock().remove(&key);
        shares.is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

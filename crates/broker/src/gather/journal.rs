//! Records into frames.

use std::sync::Arc;

use postrider_model::Record;
use postrider_telemetry::Metrics;
use postrider_wire::{SizeHint, encode_journal};

use super::GatherSettings;
use super::confirmed::Confirmed;
use super::lane::{Chunk, Lane};
use super::outlet::Outlet;
use super::room::Reserved;
use crate::{Broker, PublishError, Queue};

/// Publishes records to the journal. Cheap to clone; clones share one lane.
#[derive(Clone)]
pub struct JournalPublisher {
    lane: Arc<Lane<Record>>,
}

impl JournalPublisher {
    /// A publisher with its own lane.
    pub fn new(broker: Arc<dyn Broker>, settings: GatherSettings) -> Self {
        Self::through(Outlet {
            broker,
            settings,
            metrics: None,
        })
    }

    /// As [`JournalPublisher::new`], counting frames and failures.
    pub fn with_metrics(broker: Arc<dyn Broker>, settings: GatherSettings, metrics: Arc<Metrics>) -> Self {
        Self::through(Outlet {
            broker,
            settings,
            metrics: Some(metrics),
        })
    }

    fn through(outlet: Outlet) -> Self {
        Self {
            lane: Lane::new(outlet, Queue::Journal, encode_journal),
        }
    }

    /// Takes over records, in order; what it returns waits until all are safe, and may be dropped: the records then still
    /// go out. On an error some of them may be in the journal all the same.
    pub fn publish(&self, records: Vec<Record>) -> Confirmed {
        self.lane.publish(self.chunks(records))
    }

    /// Takes room for records, to publish them later.
    ///
    /// # Errors
    /// [`PublishError::Full`]: nothing is reserved.
    pub fn reserve(&self, records: Vec<Record>) -> Result<Reserved<Record>, PublishError> {
        let room = self.lane.reserve(self.chunks(records))?;
        Ok(Reserved(vec![room]))
    }

    /// Cuts the records of one call into what goes into a frame together.
    fn chunks(&self, records: Vec<Record>) -> Vec<Chunk<Record>> {
        let settings = self.lane.settings();
        let mut chunks: Vec<Chunk<Record>> = Vec::new();
        for record in records {
            let bytes = record.size_hint();
            match chunks.last_mut() {
                Some(chunk) if chunk.fits(1, bytes, &settings) || is_whole(chunk, bytes, &settings) => {
                    chunk.items.push(record);
                    chunk.bytes += bytes;
                }
                _ => chunks.push(Chunk {
                    items: vec![record],
                    bytes,
                }),
            }
        }
        chunks
    }
}

/// Whether a call's frame takes a record more, however much others take.
fn is_whole(chunk: &Chunk<Record>, bytes: usize, settings: &GatherSettings) -> bool {
    chunk.items.len() < settings.call_items && chunk.bytes + bytes <= settings.call_bytes
}

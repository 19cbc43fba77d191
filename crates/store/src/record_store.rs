//! The recorder's side: batches of journal records become rows.

use async_trait::async_trait;
use postrider_model::{AppId, EndpointId, Record};

use crate::error::StoreError;

/// What recording a batch did.
#[derive(Clone, Debug, Default)]
pub struct RecordReport {
    /// Messages new to the store.
    pub messages: usize,
    /// Attempts new to the store.
    pub attempts: usize,
    /// Outcomes of a run that is no longer current (but a success counts), or of a delivery that has ended: their attempts
    /// were recorded and nothing else.
    pub stale: usize,
    /// Applications whose configuration changed (an endpoint was disabled or paused), with the new version.
    pub reconfigured: Vec<(AppId, u64)>,
    /// Endpoints that were disabled: by 410 Gone, or after days of nothing but failures.
    pub disabled: Vec<EndpointId>,
}

/// Records facts.
#[async_trait]
pub trait RecordStore: Send + Sync + 'static {
    /// Records a batch in one transaction, in order. Idempotent. On an error nothing was recorded.
    async fn record(&self, batch: &[Record]) -> Result<RecordReport, StoreError>;
}

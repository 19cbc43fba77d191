//! The store: configuration, the record of every message, delivery and attempt, and everything that waits.
//!
//! One trait in five parts, two adapters (`postrider-store-sqlite`, `postrider-store-postgres`) with the same file
//! names inside, one conformance suite ([`conformance`]) that both pass.
//!
//! - [`ConfigStore`]: applications, endpoints, event types, API keys; versioned snapshots of an application.
//! - [`LogStore`]: what the API reads: messages, deliveries, attempts, counters.
//! - [`RecordStore`]: the recorder's batches. The rules live in [`fold`], which is pure and shared by the adapters:
//!   they load what it needs to know, and apply what it decides, in one transaction.
//! - [`WaitingStore`]: the scheduler's claims and leases over the one table of waiting deliveries.
//! - [`UpkeepStore`]: schema, sweeps, retention, background tasks, parked records.
//!
//! Invariants: only the recorder moves or removes a waiting row, and only for the current run (sweeps of disabled
//! and deleted endpoints excepted, which cancel on record); the scheduler only leases; terminal states are final;
//! rows may come before their message, and are leasable once it is there; the clock is the store's.

mod config_store;
pub mod conformance;
mod error;
pub mod fold;
mod follow;
mod log_store;
mod record_store;
mod reseal;
pub mod transfer;
mod upkeep_store;
mod waiting_store;

pub use config_store::{
    AppRef, ChangedApps, ConfigStore, EndpointRef, EndpointUse, NewKey, Page, Since, StoredKey,
};
pub use error::StoreError;
pub use follow::Follower;
pub use log_store::{
    AttemptFilter, AttemptRow, DeliveryFilter, DeliveryRow, EndpointCounts, LogStore, MessageFilter,
    MessageRow, PAGE_LOOKED_ROWS, PAGE_LOOKED_TIME, PAGE_PAYLOAD_BYTES, Part, TimeRange,
};
pub use record_store::{RecordReport, RecordStore};
pub use reseal::{ResealCursor, ResealReport, SealedPart};
pub use upkeep_store::{
    OrphanReport, ParkedRow, PoolKind, PoolUse, RetentionReport, SweepReport, TaskKind, TaskRow, TaskState,
    UpkeepStore, parked_digest,
};
pub use waiting_store::{
    DueEndpoint, EndpointBacklog, Grant, LAG_REST, LeasedJob, PARK_DEATHS, ReasonCount, SUSPECT_DEATHS,
    SUSPECT_REST, WaitingStore,
};

/// Everything the roles need of a store.
pub trait Store: ConfigStore + LogStore + RecordStore + WaitingStore + UpkeepStore {}

impl<T: ConfigStore + LogStore + RecordStore + WaitingStore + UpkeepStore> Store for T {}

/// A shared handle.
pub type SharedStore = std::sync::Arc<dyn Store>;

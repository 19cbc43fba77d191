//! Schema, sweeps, retention, background tasks and what is parked.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_model::{AppId, EndpointId, MessageId, TaskId, UnixMillis};
use sha2::{Digest as _, Sha256};

use crate::error::StoreError;
use crate::log_store::Part;
use crate::reseal::{ResealCursor, ResealReport};

/// What a background task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskKind {
    /// Deliver again what failed to an endpoint in a time.
    Recover = 1,
    /// Deliver to an endpoint every message of a time that it subscribes to and never got.
    Replay = 2,
}

/// How far a background task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskState {
    /// Not finished.
    Running = 0,
    /// Done.
    Finished = 1,
    /// Given up; the endpoint is gone.
    Failed = 2,
}

/// A background task: it survives restarts, and goes on from its cursor.
#[derive(Clone, Debug)]
pub struct TaskRow {
    /// Its id.
    pub id: TaskId,
    /// What it does.
    pub kind: TaskKind,
    /// The application.
    pub app: AppId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Messages made at this time or later.
    pub since: UnixMillis,
    /// Messages made before this time.
    pub until: UnixMillis,
    /// The last message looked at.
    pub cursor: Option<MessageId>,
    /// How far it is.
    pub state: TaskState,
    /// When it last moved.
    pub updated_at: UnixMillis,
}

/// A frame or record that could not be handled, kept for a person to look at.
#[derive(Clone, Debug)]
pub struct ParkedRow {
    /// Its number.
    pub id: i64,
    /// `job` or `record` or `frame`.
    pub kind: String,
    /// Why it was parked.
    pub reason: String,
    /// The bytes as they came, at most 8 MiB; empty when they are `sealed_away`.
    pub bytes: Bytes,
    /// The key that sealed the bytes is not there.
    pub sealed_away: bool,
    /// When.
    pub at: UnixMillis,
}

/// What tells a parked row from others: rows of one kind and the same bytes are one.
pub fn parked_digest(kind: &str, bytes: &[u8]) -> [u8; 32] {
    let hash = Sha256::new()
        .chain_update(kind)
        .chain_update([0])
        .chain_update(bytes);
    hash.finalize().into()
}

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Deliveries cancelled because their endpoint or application is disabled or deleted.
    pub cancelled: u64,
    /// Disabled or deleted endpoints that were looked at for the last time, as nothing waits for them any more.
    pub passed: u64,
    /// Background tasks' deliveries made.
    pub recovered: u64,
}

impl SweepReport {
    /// Adds what tasks made. Where they failed and something else was done the failure is logged, so that the sweep is
    /// called again at once for the rest of that.
    ///
    /// # Errors
    /// The tasks' one, when nothing else was done.
    pub fn with_tasks(self, recovered: Result<u64, StoreError>) -> Result<Self, StoreError> {
        match recovered {
            Ok(recovered) => Ok(Self { recovered, ..self }),
            Err(error) if self == Self::default() => Err(error),
            Err(error) => {
                tracing::error!(
                    error = &error as &(dyn std::error::Error + 'static),
                    "a background task cannot go on"
                );
                Ok(self)
            }
        }
    }
}

/// Deliveries that wait for a message that was never recorded: the request was refused after a part of it was on its
/// way, and nobody has repeated it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OrphanReport {
    /// Waiting for their message for more than 5 minutes, among those that were due and looked at.
    pub waiting: u64,
    /// Cancelled now.
    pub cancelled: u64,
}

/// What retention removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionReport {
    /// Payloads.
    pub payloads: u64,
    /// Messages with their deliveries and attempts (Postgres: partitions).
    pub messages: u64,
    /// Deliveries cancelled because their payload expired first.
    pub cancelled: u64,
    /// Claims, counters, finished tasks, marks of trials, and what was deleted or revoked.
    pub rows: u64,
    /// The chunk ended at its limit, perhaps without having removed anything: more may be left.
    pub more: bool,
}

/// Which connections of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// For the API's reads.
    Read,
    /// For everything else.
    Write,
}

/// How much of a pool of connections is used right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// Which.
    pub kind: PoolKind,
    /// Connections that a call has.
    pub in_use: usize,
    /// Open connections that no call has.
    pub idle: usize,
    /// Calls that are under way without a connection: they wait for one, or have not asked yet.
    pub waiting: usize,
}

/// Keeps the store in order.
#[async_trait]
pub trait UpkeepStore: Send + Sync + 'static {
    /// Brings the schema up to date; returns the version before and after. Safe with several at once. A newer schema is left
    /// as it is, or refused where only one program uses the store.
    async fn migrate(&self) -> Result<(u32, u32), StoreError>;
    /// Refuses a schema that is older than this program's, and, where only one program uses the store, a newer one.
    async fn check_schema(&self) -> Result<(), StoreError>;
    /// How much of its connections is used. Asks nobody.
    fn pools(&self) -> [PoolUse; 2];
    /// One cheap round trip.
    async fn ping(&self) -> Result<(), StoreError>;
    /// One chunk (at most `limit` rows of each kind): cancels what waits for disabled or deleted endpoints, moves
    /// background tasks on. Call again at once while it reports anything. A task that fails is an error only when nothing
    /// else was done.
    async fn sweep(&self, limit: u32) -> Result<SweepReport, StoreError>;
    /// One chunk (at most `limit` rows): counts what is due and waits for a message that was never recorded, and cancels
    /// on record (`MessageMissing`) what belongs to a message older than `cancel_after`, if that is given. The deliveries of a
    /// paused endpoint are not due. The caller knows whether the journal may still bring the message.
    async fn orphans(&self, cancel_after: Option<Duration>, limit: u32) -> Result<OrphanReport, StoreError>;
    /// One chunk of retention: payloads older than `payloads` (or their own retention), then records older than `log`, and
    /// applications, endpoints and keys that were deleted or revoked longer ago than that. Makes the coming days' partitions. Call again at once while it reports anything.
    async fn retain(
        &self,
        payloads: Duration,
        log: Duration,
        limit: u32,
    ) -> Result<RetentionReport, StoreError>;
    /// Seals what other keys of the ring sealed anew under its first: one chunk of at most `limit` rows. Safe while
    /// others read and write: a value that changed meanwhile is left as it is now.
    async fn reseal(&self, cursor: ResealCursor, limit: u32) -> Result<ResealReport, StoreError>;
    /// Stores a background task.
    async fn create_task(&self, task: &TaskRow) -> Result<(), StoreError>;
    /// Background tasks of an application that run, counted up to `most`.
    async fn running_tasks(&self, app: AppId, most: u32) -> Result<u32, StoreError>;
    /// One background task.
    async fn task(&self, id: TaskId) -> Result<Option<TaskRow>, StoreError>;
    /// Keeps what could not be handled. Idempotent: false when the same bytes of the same kind are parked already.
    async fn park(&self, kind: &str, reason: &str, bytes: &Bytes) -> Result<bool, StoreError>;
    /// Parked rows, newest first, of those with a smaller number than `before`: at most `limit`, and no more once their bytes
    /// are as many as a page may have. Cut, in both cases, where there are more.
    async fn parked(&self, limit: u32, before: Option<i64>) -> Result<Part<ParkedRow, i64>, StoreError>;
    /// One parked row.
    async fn parked_row(&self, id: i64) -> Result<Option<ParkedRow>, StoreError>;
    /// How many rows are parked.
    async fn parked_count(&self) -> Result<u64, StoreError>;
    /// Removes a parked row and returns it, also one whose bytes nobody can open.
    async fn unpark(&self, id: i64) -> Result<Option<ParkedRow>, StoreError>;
    /// Flushes and closes.
    async fn close(&self);
}

//! What the API reads: recorded messages, deliveries, attempts and counters.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_model::{
    AppId, Attempt, AttemptId, Claim, DeferReason, DeliveryId, DeliveryState, EndpointId, Message, MessageId,
    Trigger, UnixMillis,
};

use crate::config_store::Page;
use crate::error::StoreError;

/// Bounds on a creation time, taken from ids: `after < created < before`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TimeRange {
    /// Later than this.
    pub after: Option<UnixMillis>,
    /// Earlier than this.
    pub before: Option<UnixMillis>,
}

/// A recorded message. Its payload is empty and `payload_gone` set once expired or expunged, or when not asked for
/// (`payload_gone` is then false).
#[derive(Clone, Debug)]
pub struct MessageRow {
    /// The message.
    pub message: Message,
    /// The payload is no longer stored.
    pub payload_gone: bool,
}

/// A page with payloads ends after the row with which they reach so many bytes: a page of the largest ones would not fit into
/// memory.
pub const PAGE_PAYLOAD_BYTES: usize = 8 * 1024 * 1024;

/// A page of a list with filters ends once so many rows were looked at. No index holds what filters ask for: one that
/// keeps nothing of ten million rows would walk them all, and hold a connection that others need. So many rows take tens of
/// milliseconds where they lie in memory.
pub const PAGE_LOOKED_ROWS: usize = 10_000;
/// And once it took so long, where the rows are read from a disk: far below the limit of a read, so that each page comes
/// further than the one before.
pub const PAGE_LOOKED_TIME: Duration = Duration::from_secs(1);

/// A page of a list, or the part of it that its bounds leave.
#[derive(Clone, Debug)]
pub struct Part<Row, Cursor> {
    /// The rows, as [`Page`] says.
    pub rows: Vec<Row>,
    /// The page ended at a bound before it was full: where the last row is that was looked at, found or not. The page behind
    /// this place, the same way, goes on.
    pub cut: Option<Cursor>,
}

impl<Row, Cursor> Part<Row, Cursor> {
    /// A page that no bound ended.
    pub fn whole(rows: Vec<Row>) -> Self {
        Self { rows, cut: None }
    }
}

/// Which messages of an application.
#[derive(Clone, Debug, Default)]
pub struct MessageFilter {
    /// One of these types; empty means any.
    pub event_types: Vec<String>,
    /// With this channel.
    pub channel: Option<String>,
    /// Made in this time.
    pub range: TimeRange,
    /// Whether to read the payloads.
    pub with_payload: bool,
}

impl MessageFilter {
    /// Whether rows of the index are looked at and left out.
    pub fn is_selective(&self) -> bool {
        !self.event_types.is_empty() || self.channel.is_some()
    }
}

/// Which deliveries, of an endpoint or of a message.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    /// In one of these states; empty means any.
    pub states: Vec<DeliveryState>,
    /// Of a message with one of these types; empty means any.
    pub event_types: Vec<String>,
    /// Of a message with this channel.
    pub channel: Option<String>,
    /// Of a message made in this time.
    pub range: TimeRange,
}

impl DeliveryFilter {
    /// Whether rows of the index are looked at and left out.
    pub fn is_selective(&self) -> bool {
        !self.states.is_empty() || !self.event_types.is_empty() || self.channel.is_some()
    }
}

/// A recorded delivery.
#[derive(Clone, Debug)]
pub struct DeliveryRow {
    /// The delivery.
    pub id: DeliveryId,
    /// Its message.
    pub message: MessageId,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Where it stands.
    pub state: DeliveryState,
    /// Attempts recorded.
    pub attempts: u32,
    /// Why it was made.
    pub trigger: Trigger,
    /// When it waits: due time and reason.
    pub waiting: Option<(UnixMillis, DeferReason)>,
}

/// Which attempts.
#[derive(Clone, Debug, Default)]
pub struct AttemptFilter {
    /// Of this endpoint.
    pub endpoint: Option<EndpointId>,
    /// Of this message.
    pub message: Option<MessageId>,
    /// Succeeded (`true`) or failed (`false`).
    pub success: Option<bool>,
    /// Whose response status is in this class, by hundreds; 0 is "no response".
    pub status_class: Option<u16>,
    /// Of a message with one of these types; empty means any.
    pub event_types: Vec<String>,
    /// Of a message with this channel.
    pub channel: Option<String>,
    /// Started in this time.
    pub range: TimeRange,
}

impl AttemptFilter {
    /// Whether rows of the index, a message's or an endpoint's, are looked at and left out.
    pub fn is_selective(&self) -> bool {
        let of_both = self.endpoint.is_some() && self.message.is_some();
        let of_some = self.success.is_some() || self.status_class.is_some();
        of_both || of_some || !self.event_types.is_empty() || self.channel.is_some()
    }
}

/// A recorded attempt.
#[derive(Clone, Debug)]
pub struct AttemptRow {
    /// The attempt; its response is empty once expunged.
    pub attempt: Attempt,
    /// Its delivery.
    pub delivery: DeliveryId,
    /// Its message.
    pub message: MessageId,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Why its delivery was made.
    pub trigger: Trigger,
}

/// Deliveries of an endpoint by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounts {
    /// Delivered.
    pub success: i64,
    /// Accepted, not yet tried.
    pub pending: i64,
    /// Exhausted.
    pub fail: i64,
    /// Failed at least once, to be tried again.
    pub sending: i64,
    /// Cancelled.
    pub canceled: i64,
}

/// Reads the record.
#[async_trait]
pub trait LogStore: Send + Sync + 'static {
    /// One message.
    async fn message(
        &self,
        app: AppId,
        id: MessageId,
        with_payload: bool,
    ) -> Result<Option<MessageRow>, StoreError>;
    /// One message by the caller's `eventId`, the newest.
    async fn message_by_event_id(
        &self,
        app: AppId,
        event_id: &str,
        with_payload: bool,
    ) -> Result<Option<MessageRow>, StoreError>;
    /// An application's messages, newest first unless the page says otherwise.
    async fn messages(
        &self,
        app: AppId,
        filter: &MessageFilter,
        page: &Page<MessageId>,
    ) -> Result<Part<MessageRow, MessageId>, StoreError>;
    /// Removes a message's payload and cancels what waits for it (`PayloadExpunged`); false when there is none.
    async fn expunge_payload(&self, app: AppId, id: MessageId) -> Result<bool, StoreError>;

    /// An endpoint's deliveries with their messages, by message id and then by their own: an automatic delivery and
    /// those by hand have the same message. A cursor names a row by both, and need not name one that is there.
    async fn deliveries_of_endpoint(
        &self,
        app: AppId,
        endpoint: EndpointId,
        filter: &DeliveryFilter,
        page: &Page<(MessageId, DeliveryId)>,
        with_payload: bool,
    ) -> Result<Part<(DeliveryRow, MessageRow), (MessageId, DeliveryId)>, StoreError>;
    /// A message's deliveries, by endpoint id and then by their own; a cursor is as above.
    async fn deliveries_of_message(
        &self,
        app: AppId,
        message: MessageId,
        page: &Page<(EndpointId, DeliveryId)>,
    ) -> Result<Vec<DeliveryRow>, StoreError>;

    /// Attempts of an application, newest first unless the page says otherwise. At least one of `endpoint` and
    /// `message` is set.
    async fn attempts(
        &self,
        app: AppId,
        filter: &AttemptFilter,
        page: &Page<AttemptId>,
    ) -> Result<Part<AttemptRow, AttemptId>, StoreError>;
    /// One attempt.
    async fn attempt(
        &self,
        app: AppId,
        message: MessageId,
        id: AttemptId,
    ) -> Result<Option<AttemptRow>, StoreError>;
    /// Removes an attempt's response body; false when there is none.
    async fn expunge_attempt(
        &self,
        app: AppId,
        message: MessageId,
        id: AttemptId,
    ) -> Result<bool, StoreError>;
    /// An endpoint's deliveries by state, of messages made in the range (to the hour).
    async fn endpoint_counts(
        &self,
        endpoint: EndpointId,
        range: TimeRange,
    ) -> Result<EndpointCounts, StoreError>;
    /// Unexpired claims of these keys, in order (embedded set-up only; Postgres adapters answer from the same table).
    async fn claims(&self, keys: &[[u8; 32]]) -> Result<Vec<Option<Claim>>, StoreError>;
    /// When the last of all claims ends; `None` without any. After that time there is none to look for.
    async fn last_claim_ends(&self) -> Result<Option<UnixMillis>, StoreError>;
    /// Payload and content type of a message, for a release; `None` when gone.
    async fn payload(&self, id: MessageId) -> Result<Option<(String, Bytes)>, StoreError>;
}

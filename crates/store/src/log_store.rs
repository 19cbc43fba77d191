//! What the API reads: recorded messages, deliveries, attempts and counters.

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
/// memory. Rows of so many bytes may have others behind them.
pub const PAGE_PAYLOAD_BYTES: usize = 8 * 1024 * 1024;

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
    ) -> Result<Vec<MessageRow>, StoreError>;
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
    ) -> Result<Vec<(DeliveryRow, MessageRow)>, StoreError>;
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
    ) -> Result<Vec<AttemptRow>, StoreError>;
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

//! Configuration: every write bumps the version of its application in the same transaction.

use async_trait::async_trait;
use postrider_model::{
    AppId, AppSnapshot, Application, Claim, Endpoint, EndpointId, EventType, KeyId, UnixMillis,
};

use crate::error::StoreError;

/// An application by id or by its uid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AppRef {
    /// By id.
    Id(AppId),
    /// By the caller's own name.
    Uid(String),
}

/// An endpoint by id or by its uid within the application.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointRef {
    /// By id.
    Id(EndpointId),
    /// By the caller's own name.
    Uid(String),
}

/// A page of a list ordered by id (or by name, for event types).
#[derive(Clone, Debug)]
pub struct Page<Cursor> {
    /// Start after this one, in list order. For `backwards`, the rows just before this one.
    pub after: Option<Cursor>,
    /// The page before `after` instead; rows still come in list order.
    pub backwards: bool,
    /// Newest (or last name) first.
    pub descending: bool,
    /// At most this many rows (1 to 250). Adapters return up to `limit + 1` rows when there are more (for
    /// `backwards` the extra row is the first one), so that callers can tell.
    pub limit: u32,
}

impl<Cursor> Page<Cursor> {
    /// The same page with its cursor as another type.
    pub fn map<Other>(self, cursor: impl FnOnce(Cursor) -> Other) -> Page<Other> {
        Page {
            after: self.after.map(cursor),
            backwards: self.backwards,
            descending: self.descending,
            limit: self.limit,
        }
    }
}

/// What an application's endpoints take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointUse {
    /// How many there are.
    pub count: u32,
    /// The sum of their [`Endpoint::memory_bytes`] as they were written; less where an older Postrider wrote some.
    pub bytes: u64,
}

/// An API key to store.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its public name.
    pub id: KeyId,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// `admin`, `ingest` or `app:<id>`.
    pub scope: String,
    /// For people.
    pub name: String,
    /// When it was made.
    pub created_at: UnixMillis,
}

/// A stored API key.
#[derive(Clone, Debug)]
pub struct StoredKey {
    /// What was stored.
    pub key: NewKey,
    /// Set once revoked.
    pub revoked_at: Option<UnixMillis>,
}

/// Where an answer of [`ConfigStore::changed_apps`] ended. Of one store only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Since(pub i64);

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedApps {
    /// Applications with their versions, deleted ones too, new ones not. What an earlier answer told may come again.
    pub apps: Vec<(AppId, u64)>,
    /// What is committed after this answer is told by those that are asked for with this, or with an earlier one. Less than
    /// what was asked with: the store was put back to an earlier state, and this answer tells nothing.
    pub next: Since,
}

/// Reads and writes configuration.
///
/// An update replaces a whole row, so it names the row that it was made from: `was` is the row's `updated_at` as it was
/// read, and the new `updated_at` must be later. `Changed` when somebody else wrote the row in between; whoever wants
/// both changes reads it again. So no update is lost, whatever number of gateways there is.
#[async_trait]
pub trait ConfigStore: Send + Sync + 'static {
    /// Creates an application; returns its version (1). `Conflict("uid")` or `Conflict("id")`.
    async fn create_app(&self, app: &Application) -> Result<u64, StoreError>;
    /// Replaces the mutable fields of an application; the new version, or `None` when there is none.
    /// `Conflict("uid")`, `Changed`.
    async fn update_app(&self, app: &Application, was: UnixMillis) -> Result<Option<u64>, StoreError>;
    /// Marks an application deleted, with its endpoints (their waiting deliveries are swept later). Its uid becomes
    /// free. The new version, or `None` when there is none.
    async fn delete_app(&self, id: AppId, at: UnixMillis) -> Result<Option<u64>, StoreError>;
    /// One application.
    async fn app(&self, app: &AppRef) -> Result<Option<Application>, StoreError>;
    /// Applications by id.
    async fn apps(&self, page: &Page<AppId>) -> Result<Vec<Application>, StoreError>;
    /// An application's configuration with its version, in one snapshot. Endpoints by id, deleted ones left out.
    async fn snapshot(&self, app: &AppRef) -> Result<Option<AppSnapshot>, StoreError>;
    /// Applications whose configuration changed since an earlier answer, `limit` at most; without one, none.
    async fn changed_apps(&self, since: Option<Since>, limit: u32) -> Result<ChangedApps, StoreError>;

    /// What an application's endpoints take.
    async fn endpoint_use(&self, app: AppId) -> Result<EndpointUse, StoreError>;
    /// Creates an endpoint; the application's new version, `None` when the application is gone.
    async fn create_endpoint(&self, endpoint: &Endpoint) -> Result<Option<u64>, StoreError>;
    /// Replaces the mutable fields of an endpoint, secrets and headers included, and lets what waits for it be seen
    /// again by the scheduler (its pause or disable may have ended; then it is no longer known for how long it has failed).
    /// The application's new version, `None` when there is no such endpoint. `Conflict("uid")`, `Changed`.
    async fn update_endpoint(&self, endpoint: &Endpoint, was: UnixMillis) -> Result<Option<u64>, StoreError>;
    /// Marks an endpoint deleted. The application's new version.
    async fn delete_endpoint(
        &self,
        app: AppId,
        id: EndpointId,
        at: UnixMillis,
    ) -> Result<Option<u64>, StoreError>;
    /// One endpoint, secrets decrypted.
    async fn endpoint(&self, app: AppId, endpoint: &EndpointRef) -> Result<Option<Endpoint>, StoreError>;
    /// An application's endpoints by id.
    async fn endpoints(&self, app: AppId, page: &Page<EndpointId>) -> Result<Vec<Endpoint>, StoreError>;

    /// Creates an event type, in the place of an archived one of its name if there is one. `Conflict("name")`.
    async fn create_event_type(&self, event_type: &EventType) -> Result<(), StoreError>;
    /// Creates or replaces by name; true when it was created. An existing one keeps its id and creation time.
    async fn put_event_type(&self, event_type: &EventType) -> Result<bool, StoreError>;
    /// Replaces the mutable fields of the event type of this name; false when there is none. `Changed`.
    async fn update_event_type(&self, event_type: &EventType, was: UnixMillis) -> Result<bool, StoreError>;
    /// Archives (`expunge` false) or removes an event type; false when there is none.
    async fn delete_event_type(&self, name: &str, expunge: bool, at: UnixMillis) -> Result<bool, StoreError>;
    /// One event type, archived ones too.
    async fn event_type(&self, name: &str) -> Result<Option<EventType>, StoreError>;
    /// Event types by name.
    async fn event_types(
        &self,
        page: &Page<String>,
        archived_too: bool,
    ) -> Result<Vec<EventType>, StoreError>;

    /// Stores an API key.
    async fn create_key(&self, key: &NewKey) -> Result<(), StoreError>;
    /// The live key of this hash.
    async fn key_by_hash(&self, hash: &[u8; 32]) -> Result<Option<StoredKey>, StoreError>;
    /// Keys by id, revoked ones included.
    async fn keys(&self, page: &Page<KeyId>) -> Result<Vec<StoredKey>, StoreError>;
    /// Revokes a key; false when there is none or it was revoked before.
    async fn revoke_key(&self, id: KeyId, at: UnixMillis) -> Result<bool, StoreError>;

    /// Keeps the claim of a request that changes configuration, unless one of its key stands; returns the one that
    /// stands now. (Claims of messages are part of their record.)
    async fn keep_claim(&self, claim: &Claim) -> Result<Claim, StoreError>;
    /// Removes the claim of this key, if it is for this resource: its request was refused.
    async fn drop_claim(&self, key: &[u8; 32], resource: &[u8; 16]) -> Result<(), StoreError>;
}

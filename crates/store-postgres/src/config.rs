//! Configuration. Every write bumps its application's version in the same transaction; the application's row is
//! locked first, so that versions and changes come in the same order.

pub(crate) mod apps;
mod claims;
pub(crate) mod endpoints;
mod event_types;
mod keys;

use async_trait::async_trait;
use postrider_model::{
    AppId, AppSnapshot, Application, Claim, Endpoint, EndpointId, EventType, KeyId, UnixMillis,
};
use postrider_store::{
    AppRef, ChangedApps, ConfigStore, EndpointRef, EndpointUse, NewKey, Page, Since, StoreError, StoredKey,
};

use crate::PostgresStore;

#[async_trait]
impl ConfigStore for PostgresStore {
    async fn create_app(&self, app: &Application) -> Result<u64, StoreError> {
        self.writing(apps::create(self, app)).await
    }

    async fn update_app(&self, app: &Application, was: UnixMillis) -> Result<Option<u64>, StoreError> {
        self.writing(apps::update(self, app, was)).await
    }

    async fn delete_app(&self, id: AppId, at: UnixMillis) -> Result<Option<u64>, StoreError> {
        self.writing(apps::delete(self, id, at)).await
    }

    async fn app(&self, app: &AppRef) -> Result<Option<Application>, StoreError> {
        self.reading(async {
            let mut connection = self.read.acquire().await?;
            Ok(apps::load(&mut connection, app).await?.map(|(app, _)| app))
        })
        .await
    }

    async fn apps(&self, page: &Page<AppId>) -> Result<Vec<Application>, StoreError> {
        self.reading(apps::list(self, page)).await
    }

    async fn snapshot(&self, app: &AppRef) -> Result<Option<AppSnapshot>, StoreError> {
        self.leaning(apps::snapshot(self, app)).await
    }

    async fn changed_apps(&self, since: Option<Since>, limit: u32) -> Result<ChangedApps, StoreError> {
        self.leaning(apps::changed(self, since, limit)).await
    }

    async fn endpoint_use(&self, app: AppId) -> Result<EndpointUse, StoreError> {
        self.reading(endpoints::in_use(self, app)).await
    }

    async fn create_endpoint(&self, endpoint: &Endpoint) -> Result<Option<u64>, StoreError> {
        self.writing(endpoints::create(self, endpoint)).await
    }

    async fn update_endpoint(&self, endpoint: &Endpoint, was: UnixMillis) -> Result<Option<u64>, StoreError> {
        self.writing(endpoints::update(self, endpoint, was)).await
    }

    async fn delete_endpoint(
        &self,
        app: AppId,
        id: EndpointId,
        at: UnixMillis,
    ) -> Result<Option<u64>, StoreError> {
        self.writing(endpoints::delete(self, app, id, at)).await
    }

    async fn endpoint(&self, app: AppId, endpoint: &EndpointRef) -> Result<Option<Endpoint>, StoreError> {
        self.reading(endpoints::load(self, app, endpoint)).await
    }

    async fn endpoints(&self, app: AppId, page: &Page<EndpointId>) -> Result<Vec<Endpoint>, StoreError> {
        self.reading(endpoints::list(self, app, page)).await
    }

    async fn create_event_type(&self, event_type: &EventType) -> Result<(), StoreError> {
        self.writing(event_types::create(self, event_type)).await
    }

    async fn put_event_type(&self, event_type: &EventType) -> Result<bool, StoreError> {
        self.writing(event_types::put(self, event_type)).await
    }

    async fn update_event_type(&self, event_type: &EventType, was: UnixMillis) -> Result<bool, StoreError> {
        self.writing(event_types::update(self, event_type, was)).await
    }

    async fn delete_event_type(&self, name: &str, expunge: bool, at: UnixMillis) -> Result<bool, StoreError> {
        self.writing(event_types::delete(self, name, expunge, at)).await
    }

    async fn event_type(&self, name: &str) -> Result<Option<EventType>, StoreError> {
        self.reading(event_types::load(self, name)).await
    }

    async fn event_types(
        &self,
        page: &Page<String>,
        archived_too: bool,
    ) -> Result<Vec<EventType>, StoreError> {
        self.reading(event_types::list(self, page, archived_too)).await
    }

    async fn create_key(&self, key: &NewKey) -> Result<(), StoreError> {
        self.writing(keys::create(self, key)).await
    }

    async fn key_by_hash(&self, hash: &[u8; 32]) -> Result<Option<StoredKey>, StoreError> {
        self.leaning(keys::by_hash(self, hash)).await
    }

    async fn keys(&self, page: &Page<KeyId>) -> Result<Vec<StoredKey>, StoreError> {
        self.reading(keys::list(self, page)).await
    }

    async fn revoke_key(&self, id: KeyId, at: UnixMillis) -> Result<bool, StoreError> {
        self.writing(keys::revoke(self, id, at)).await
    }

    async fn keep_claim(&self, claim: &Claim) -> Result<Claim, StoreError> {
        self.writing(claims::keep(self, claim)).await
    }

    async fn drop_claim(&self, key: &[u8; 32], resource: &[u8; 16]) -> Result<(), StoreError> {
        self.writing(claims::remove(self, key, resource)).await
    }
}

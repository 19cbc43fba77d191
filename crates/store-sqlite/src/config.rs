//! `ConfigStore`: applications, endpoints, event types, API keys, claims.

pub(crate) mod apps;
pub(crate) mod endpoints;
pub(crate) mod event_types;
pub(crate) mod keys;

use std::sync::Arc;

use async_trait::async_trait;
use postrider_model::{
    AppId, AppSnapshot, Application, Claim, Endpoint, EndpointId, EventType, KeyId, UnixMillis,
};
use postrider_store::{
    AppRef, ChangedApps, ConfigStore, EndpointRef, EndpointUse, NewKey, Page, Since, StoreError, StoredKey,
};
use rusqlite::{OptionalExtension, params};

pub(crate) use self::apps::bump;
use self::apps::{changed_apps, create_app, delete_app, find_app, list_apps, update_app};
use self::event_types::{
    delete_event_type, find_event_type, insert_event_type, list_event_types, put_event_type,
    update_event_type,
};
use self::keys::{KEY_COLUMNS, create_key, list_keys, read_key};
use crate::{SqliteStore, claims};

#[async_trait]
impl ConfigStore for SqliteStore {
    async fn create_app(&self, app: &Application) -> Result<u64, StoreError> {
        let app = app.clone();
        self.write(move |connection| create_app(connection, &app)).await
    }

    async fn update_app(&self, app: &Application, was: UnixMillis) -> Result<Option<u64>, StoreError> {
        let app = app.clone();
        self.write(move |connection| update_app(connection, &app, was))
            .await
    }

    async fn delete_app(&self, id: AppId, at: UnixMillis) -> Result<Option<u64>, StoreError> {
        self.write(move |connection| delete_app(connection, id, at)).await
    }

    async fn app(&self, app: &AppRef) -> Result<Option<Application>, StoreError> {
        let app = app.clone();
        self.read(move |connection| Ok(find_app(connection, &app)?.map(|(application, _)| application)))
            .await
    }

    async fn apps(&self, page: &Page<AppId>) -> Result<Vec<Application>, StoreError> {
        let page = page.clone();
        self.list(move |connection| list_apps(connection, &page)).await
    }

    async fn snapshot(&self, app: &AppRef) -> Result<Option<AppSnapshot>, StoreError> {
        let app = app.clone();
        let keyring = self.keyring.clone();
        self.read(move |connection| {
            // Both reads see the same commit.
            let transaction = connection.unchecked_transaction()?;
            let Some((application, version)) = find_app(&transaction, &app)? else {
                return Ok(None);
            };
            let endpoints = endpoints::all_of(&transaction, &keyring, application.id)?;
            Ok(Some(AppSnapshot {
                version,
                application,
                endpoints: endpoints.into_iter().map(Arc::new).collect(),
            }))
        })
        .await
    }

    async fn changed_apps(&self, since: Option<Since>, limit: u32) -> Result<ChangedApps, StoreError> {
        self.read(move |connection| changed_apps(connection, since, limit))
            .await
    }

    async fn endpoint_use(&self, app: AppId) -> Result<EndpointUse, StoreError> {
        self.read(move |connection| endpoints::in_use(connection, app))
            .await
    }

    async fn create_endpoint(&self, endpoint: &Endpoint) -> Result<Option<u64>, StoreError> {
        let row = endpoints::StoredEndpoint::seal(endpoint, &self.keyring)?;
        self.write(move |connection| endpoints::create(connection, &row))
            .await
    }

    async fn update_endpoint(&self, endpoint: &Endpoint, was: UnixMillis) -> Result<Option<u64>, StoreError> {
        let row = endpoints::StoredEndpoint::seal(endpoint, &self.keyring)?;
        self.write(move |connection| endpoints::update(connection, &row, was))
            .await
    }

    async fn delete_endpoint(
        &self,
        app: AppId,
        id: EndpointId,
        at: UnixMillis,
    ) -> Result<Option<u64>, StoreError> {
        self.write(move |connection| endpoints::delete(connection, app, id, at))
            .await
    }

    async fn endpoint(&self, app: AppId, endpoint: &EndpointRef) -> Result<Option<Endpoint>, StoreError> {
        let endpoint = endpoint.clone();
        let keyring = self.keyring.clone();
        self.read(move |connection| endpoints::find(connection, &keyring, app, &endpoint))
            .await
    }

    async fn endpoints(&self, app: AppId, page: &Page<EndpointId>) -> Result<Vec<Endpoint>, StoreError> {
        let page = page.clone();
        let keyring = self.keyring.clone();
        self.list(move |connection| endpoints::list(connection, &keyring, app, &page))
            .await
    }

    async fn create_event_type(&self, event_type: &EventType) -> Result<(), StoreError> {
        let event_type = event_type.clone();
        self.write(move |connection| insert_event_type(connection, &event_type))
            .await
    }

    async fn put_event_type(&self, event_type: &EventType) -> Result<bool, StoreError> {
        let event_type = event_type.clone();
        self.write(move |connection| put_event_type(connection, &event_type))
            .await
    }

    async fn update_event_type(&self, event_type: &EventType, was: UnixMillis) -> Result<bool, StoreError> {
        let event_type = event_type.clone();
        self.write(move |connection| update_event_type(connection, &event_type, was))
            .await
    }

    async fn delete_event_type(&self, name: &str, expunge: bool, at: UnixMillis) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.write(move |connection| delete_event_type(connection, &name, expunge, at))
            .await
    }

    async fn event_type(&self, name: &str) -> Result<Option<EventType>, StoreError> {
        let name = name.to_owned();
        self.read(move |connection| find_event_type(connection, &name))
            .await
    }

    async fn event_types(
        &self,
        page: &Page<String>,
        archived_too: bool,
    ) -> Result<Vec<EventType>, StoreError> {
        let page = page.clone();
        self.list(move |connection| list_event_types(connection, &page, archived_too))
            .await
    }

    async fn create_key(&self, key: &NewKey) -> Result<(), StoreError> {
        let key = key.clone();
        self.write(move |connection| create_key(connection, &key)).await
    }

    async fn key_by_hash(&self, hash: &[u8; 32]) -> Result<Option<StoredKey>, StoreError> {
        let hash = *hash;
        self.read(move |connection| {
            let found = connection
                .prepare_cached(&format!(
                    "SELECT {KEY_COLUMNS} FROM api_keys WHERE hash = ?1 AND revoked_at IS NULL"
                ))?
                .query_row([hash], read_key)
                .optional()?;
            Ok(found)
        })
        .await
    }

    async fn keys(&self, page: &Page<KeyId>) -> Result<Vec<StoredKey>, StoreError> {
        let page = page.clone();
        self.read(move |connection| list_keys(connection, &page)).await
    }

    async fn revoke_key(&self, id: KeyId, at: UnixMillis) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let changed = connection
                .prepare_cached("UPDATE api_keys SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL")?
                .execute(params![id.as_bytes(), at.0])?;
            Ok(changed > 0)
        })
        .await
    }

    async fn keep_claim(&self, claim: &Claim) -> Result<Claim, StoreError> {
        let (claim, recent) = (claim.clone(), Arc::clone(&self.recent_claims));
        self.write(move |connection| claims::keep(connection, &recent, &claim))
            .await
    }

    async fn drop_claim(&self, key: &[u8; 32], resource: &[u8; 16]) -> Result<(), StoreError> {
        let (key, resource) = (*key, *resource);
        self.write(move |connection| claims::drop_one(connection, &key, &resource))
            .await
    }
}

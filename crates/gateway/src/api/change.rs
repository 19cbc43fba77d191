//! Changing a row of configuration: read, changed, written back, and begun again when another gateway wrote the same
//! row in between, so that changes of different fields all hold.

use postrider_model::{AppId, Application, Endpoint, EventType, UnixMillis};
use postrider_store::{AppRef, EndpointRef, StoreError};

use crate::error::Error;
use crate::state::Api;

/// How often a change begins anew before its caller is asked to try later. Each time, another gateway's got through.
const TRIES_MAX: u32 = 50;

/// A row of configuration that is changed as a whole.
pub(super) trait Row: Sized + Send + Sync {
    /// What names one.
    type Key: Send + Sync;

    fn read(api: &Api, key: &Self::Key) -> impl Future<Output = Result<Option<Self>, StoreError>> + Send;

    /// Writes it back unless it was changed since `was`, and tells the caches; false when it is gone.
    fn write(&self, api: &Api, was: UnixMillis) -> impl Future<Output = Result<bool, StoreError>> + Send;

    fn updated_at(&mut self) -> &mut UnixMillis;
}

/// Changes a row; 404 when there is none. `how` may be asked several times. Hold the application's lock: changes of
/// one process need not beat each other.
pub(super) async fn change<R: Row>(
    api: &Api,
    key: &R::Key,
    how: impl Fn(&mut R) -> Result<(), Error> + Send,
) -> Result<R, Error> {
    for _ in 0..TRIES_MAX {
        let mut row = R::read(api, key).await?.ok_or_else(Error::not_found)?;
        let was = *row.updated_at();
        how(&mut row)?;
        // The store tells rows apart by it, so it must be later, whatever the clock says.
        *row.updated_at() = UnixMillis::now().max(UnixMillis(was.0.saturating_add(1)));
        match row.write(api, was).await {
            Ok(true) => return Ok(row),
            Ok(false) => return Err(Error::not_found()),
            Err(StoreError::Changed) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Changed.into())
}

impl Row for Application {
    type Key = AppRef;

    async fn read(api: &Api, key: &AppRef) -> Result<Option<Self>, StoreError> {
        api.store.app(key).await
    }

    async fn write(&self, api: &Api, was: UnixMillis) -> Result<bool, StoreError> {
        let version = api.store.update_app(self, was).await?;
        if let Some(uid) = &self.uid {
            api.cache.named(uid);
        }
        Ok(announced(api, self.id, version).await)
    }

    fn updated_at(&mut self) -> &mut UnixMillis {
        &mut self.updated_at
    }
}

impl Row for Endpoint {
    type Key = (AppId, EndpointRef);

    async fn read(api: &Api, (app, endpoint): &Self::Key) -> Result<Option<Self>, StoreError> {
        api.store.endpoint(*app, endpoint).await
    }

    async fn write(&self, api: &Api, was: UnixMillis) -> Result<bool, StoreError> {
        let version = api.store.update_endpoint(self, was).await?;
        Ok(announced(api, self.app, version).await)
    }

    fn updated_at(&mut self) -> &mut UnixMillis {
        &mut self.updated_at
    }
}

impl Row for EventType {
    type Key = String;

    async fn read(api: &Api, name: &String) -> Result<Option<Self>, StoreError> {
        api.store.event_type(name).await
    }

    async fn write(&self, api: &Api, was: UnixMillis) -> Result<bool, StoreError> {
        api.store.update_event_type(self, was).await
    }

    fn updated_at(&mut self) -> &mut UnixMillis {
        &mut self.updated_at
    }
}

async fn announced(api: &Api, app: AppId, version: Option<u64>) -> bool {
    let Some(version) = version else { return false };
    api.changed(app, version).await;
    true
}

//! How much an endpoint may take, and all endpoints of an application: gateways and workers hold them in memory, and those
//! of one application all at once.

use postrider_model::{AppId, Endpoint};

use crate::error::Error;
use crate::state::Api;

/// All texts of an endpoint together, in bytes.
const ENDPOINT_BYTES_MAX: usize = 64 * 1024;
/// All endpoints of an application, in bytes of memory: some 80,000 of usual ones, and a quarter of what a worker caches.
pub(super) const APP_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What an endpoint takes; nothing before it is there.
#[derive(Clone, Copy, Default)]
pub(super) struct Size {
    texts: usize,
    memory: usize,
}

impl Size {
    pub(super) fn of(endpoint: &Endpoint) -> Self {
        Self {
            texts: endpoint.text_bytes(),
            memory: endpoint.memory_bytes(),
        }
    }
}

/// What is left for an application's endpoints. Concurrent changes on several gateways may overdraw it, by one endpoint each.
pub(super) struct Room(u64);

impl Room {
    /// Hold the application's lock from here on.
    pub(super) async fn of(api: &Api, app: AppId) -> Result<Self, Error> {
        Ok(Self::left(api.store.endpoint_use(app).await?.bytes))
    }

    /// What is left when the endpoints take so many bytes.
    pub(super) fn left(bytes: u64) -> Self {
        Self(APP_BYTES_MAX.saturating_sub(bytes))
    }

    /// Refuses what an endpoint has become if that is too large, or leaves the application's no room, unless it has shrunk.
    pub(super) fn check(&self, endpoint: &Endpoint, before: Size) -> Result<(), Error> {
        let after = Size::of(endpoint);
        if after.texts > ENDPOINT_BYTES_MAX.max(before.texts) {
            let detail = format!(
                "All texts of an endpoint (URL, description, event types, channels, metadata, headers) take at most \
                 {ENDPOINT_BYTES_MAX} bytes together; these take {}.",
                after.texts
            );
            return Err(Error::invalid(&["body"], detail));
        }
        let grown = after.memory.saturating_sub(before.memory);
        if grown as u64 > self.0 {
            let detail = format!(
                "All endpoints of an application take at most {APP_BYTES_MAX} bytes of memory; {} are left, and this \
                 takes {grown} more. Shorten or delete some, or divide them among several applications.",
                self.0
            );
            return Err(Error::bad_request("limit_reached", detail));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use postrider_model::{EndpointId, UnixMillis};
    use secrecy::SecretString;

    use super::super::endpoint::blank;
    use super::*;

    fn endpoint(description: usize) -> Endpoint {
        let (app, id) = (AppId::floor(UnixMillis(0)), EndpointId::floor(UnixMillis(0)));
        let mut endpoint = blank(app, id, SecretString::from("secret"));
        endpoint.description = "d".repeat(description);
        endpoint
    }

    #[test]
    fn what_is_full_takes_no_more_and_may_shrink() {
        let (large, small) = (endpoint(2_000), endpoint(1_000));
        let full = Room::left(APP_BYTES_MAX + 1);
        assert_eq!(
            full.check(&small, Size::default()).map_err(|error| error.code()),
            Err("limit_reached")
        );
        assert!(full.check(&large, Size::of(&small)).is_err());
        assert!(full.check(&large, Size::of(&large)).is_ok());
        assert!(full.check(&small, Size::of(&large)).is_ok());
        let some = Room::left(APP_BYTES_MAX - 1_000);
        assert!(some.check(&large, Size::of(&small)).is_ok());
        assert!(some.check(&endpoint(2_001), Size::of(&small)).is_err());
    }
}

//! Looks up claims that the store keeps, for many requests at once.

use std::sync::Arc;

use postrider_model::Claim;
use postrider_store::{SharedStore, StoreError};
use tokio_util::task::TaskTracker;

use crate::gather::Gather;

/// Most keys of one call.
const CALL_KEYS_MAX: usize = 1024;

type Key = [u8; 32];

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct StoredClaims(Arc<Inner>);

struct Inner {
    store: SharedStore,
    tasks: TaskTracker,
    wanted: Gather<Vec<Key>, Vec<Option<Claim>>>,
}

impl StoredClaims {
    pub(crate) fn new(store: SharedStore, tasks: TaskTracker) -> Self {
        Self(Arc::new(Inner {
            store,
            tasks,
            wanted: Gather::new(Vec::len, CALL_KEYS_MAX),
        }))
    }

    /// The claims of these keys that have not ended, in order.
    pub(crate) async fn find(&self, keys: &[Key]) -> Result<Vec<Option<Claim>>, StoreError> {
        let (found, lead) = self.0.wanted.ask(keys.to_vec());
        if lead {
            self.0.tasks.spawn(Arc::clone(&self.0).find_all());
        }
        match found.await {
            Ok(found) => Ok(found),
            // The common call failed: each asks for itself, and learns its own error.
            Err(_) => self.0.store.claims(keys).await,
        }
    }
}

impl Inner {
    async fn find_all(self: Arc<Self>) {
        self.wanted.answer(|wanted| self.find_batch(wanted)).await;
    }

    async fn find_batch(&self, wanted: Vec<Vec<Key>>) -> Vec<Vec<Option<Claim>>> {
        let Ok(found) = self.store.claims(&wanted.concat()).await else {
            return Vec::new();
        };
        let mut found = found.into_iter();
        wanted
            .iter()
            .map(|keys| found.by_ref().take(keys.len()).collect())
            .collect()
    }
}

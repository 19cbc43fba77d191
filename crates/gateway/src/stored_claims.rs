//! Looks up claims that the store keeps, for many requests at once.

use std::sync::Arc;

use postrider_model::Claim;
use postrider_store::{SharedStore, StoreError};
use tokio_util::task::TaskTracker;

use crate::gather::Gather;

/// Most keys of one call.
const CALL_KEYS_MAX: usize = 1024;

type Key = [u8; 32];
/// An error is one of several requests.
type Found = Result<Vec<Option<Claim>>, Arc<StoreError>>;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct StoredClaims(Arc<Inner>);

struct Inner {
    store: SharedStore,
    tasks: TaskTracker,
    wanted: Gather<Vec<Key>, Found>,
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
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(match *error {
                StoreError::Unavailable(_) => StoreError::Unavailable(Box::new(error)),
                StoreError::Slow(_) => StoreError::Slow(Box::new(error)),
                _ => StoreError::Rejected(Box::new(error)),
            }),
            Err(gone) => Err(StoreError::Unavailable(Box::new(gone))),
        }
    }
}

impl Inner {
    async fn find_all(self: Arc<Self>) {
        self.wanted.answer(|wanted| self.find_batch(wanted)).await;
    }

    /// What fails fails for all: each for itself would only keep a store busy that is slow.
    async fn find_batch(&self, wanted: Vec<Vec<Key>>) -> Vec<Found> {
        match self.store.claims(&wanted.concat()).await {
            Ok(found) => {
                let mut found = found.into_iter();
                let mut take = |keys: &Vec<Key>| Ok(found.by_ref().take(keys.len()).collect());
                wanted.iter().map(&mut take).collect()
            }
            Err(error) => vec![Err(Arc::new(error)); wanted.len()],
        }
    }
}

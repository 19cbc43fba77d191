//! The schema of a scaled-out store, which `postrider migrate` changes and nothing else: a process does not work on one
//! that is older than it needs.
//!
//! A store that is away at the start is looked at as soon as it is back. Until then no role says that it is ready
//! (their readiness takes the same look), and a schema that does not fit ends the process as it would have at the start.

use std::time::Duration;

use postrider_store::{SharedStore, StoreError};

const POLL: Duration = Duration::from_secs(1);
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// Looks at once: an error unless the schema fits or the store is away.
pub(crate) async fn check(store: &SharedStore) -> Result<(), StoreError> {
    match store.check_schema().await {
        Err(error) if error.is_transient() => {
            tracing::warn!(%error, "the store is away; its schema is looked at when it is back");
            Ok(())
        }
        other => other,
    }
}

/// Looks until there is an answer. Ends when the schema does not fit, and only then.
pub(crate) async fn unfit(store: &SharedStore) -> StoreError {
    loop {
        match tokio::time::timeout(LOOK_TIMEOUT, store.check_schema()).await {
            Ok(Ok(())) => return std::future::pending().await,
            Ok(Err(error)) if !error.is_transient() => return error,
            Ok(Err(_)) | Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

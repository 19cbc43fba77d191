//! The store's conformance suite on a file of its own for each test.

use std::sync::Arc;

use postrider_secrets::Keyring;
use postrider_store::SharedStore;
use postrider_store_sqlite::{Settings, SqliteStore};

async fn make_store() -> (SharedStore, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (keyring, _) = Keyring::generate().expect("randomness");
    let path = directory.path().join("postrider.db");
    let settings = Settings::new(Arc::new(keyring));
    let store = tokio::task::spawn_blocking(move || SqliteStore::open(path, settings))
        .await
        .expect("no panic")
        .expect("the store opens");
    (store, directory)
}

postrider_store::store_conformance!(make_store);

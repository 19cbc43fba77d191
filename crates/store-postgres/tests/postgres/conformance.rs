//! The store's conformance suite, each check on a database of its own.

use postrider_store::{SharedStore, UpkeepStore};
use postrider_testkit::services::PostgresDatabase;

use crate::world::{keyring, open};

async fn make_store() -> (SharedStore, PostgresDatabase) {
    let database = PostgresDatabase::create().await.unwrap();
    let store = open(database.url(), &keyring());
    store.migrate().await.unwrap();
    (store, database)
}

postrider_store::store_conformance!(make_store);

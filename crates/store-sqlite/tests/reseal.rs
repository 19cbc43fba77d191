//! Sealing anew, on a file that three stores have open, as processes with different rings do.

use std::sync::Arc;

use postrider_secrets::Keyring;
use postrider_store::SharedStore;
use postrider_store_sqlite::{Settings, SqliteStore};
use secrecy::ExposeSecret as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_old_key_sealed_is_sealed_anew() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("postrider.db");
    let [old, new] = [(); 2].map(|()| {
        let (_, text) = Keyring::generate().expect("randomness");
        text.expose_secret().to_owned()
    });
    let open = |keys: &str| -> SharedStore {
        let keyring = Keyring::parse(keys).expect("a ring");
        SqliteStore::open(&path, Settings::new(Arc::new(keyring))).expect("the store opens")
    };
    let (both, old) = (open(&format!("{new},{old}")), open(&old));
    postrider_store::conformance::reseal::what_an_old_key_sealed_is_sealed_anew(old, both, open(&new)).await;
}

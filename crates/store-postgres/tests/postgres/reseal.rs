//! Sealing anew, by three processes with different rings.

use std::sync::Arc;

use postrider_secrets::Keyring;
use postrider_store::{SharedStore, UpkeepStore as _};
use postrider_testkit::services::PostgresDatabase;
use secrecy::ExposeSecret as _;

use crate::world::open;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_old_key_sealed_is_sealed_anew() {
    let database = PostgresDatabase::create().await.unwrap();
    let [old, new] = [(); 2].map(|()| Keyring::generate().unwrap().1.expose_secret().to_owned());
    let view = |keys: &str| open(database.url(), &Arc::new(Keyring::parse(keys).unwrap()));
    view(&old).migrate().await.unwrap();
    let both = format!("{new},{old}");
    let [old, both, new] = [&old, &both, &new].map(|keys| -> SharedStore { view(keys) });
    postrider_store::conformance::reseal::what_an_old_key_sealed_is_sealed_anew(old, both, new).await;
}

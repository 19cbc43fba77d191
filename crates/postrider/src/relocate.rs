//! `postrider move`: from the embedded store to Postgres, whole or not at all.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use postrider_config::{Config, StoreTarget};
use postrider_secrets::Keyring;
use postrider_store::UpkeepStore as _;
use postrider_store_sqlite::Export;
use secrecy::SecretString;

use crate::out::say;

/// Moves what is in the data directory `from` to the Postgres of the configuration.
pub(crate) async fn run(config: Config, from: &Path) -> anyhow::Result<()> {
    let StoreTarget::Postgres(url) = config.store_target() else {
        anyhow::bail!("the target is not Postgres; set POSTRIDER_STORE__URL as for the scaled-out set-up");
    };
    let url = SecretString::from(url.expose().to_owned());
    anyhow::ensure!(
        config.secrets.key.is_some(),
        "POSTRIDER_SECRETS__KEY is not set; give it the key that every process of the scaled-out set-up will have"
    );
    let target_keys = Arc::new(crate::parts::keyring(&config)?);
    let file = from.join("postrider.db");
    anyhow::ensure!(file.is_file(), "there is no store at {}", file.display());
    let key_file = from.join("secrets.key");
    let source_keys = if key_file.is_file() {
        Arc::new(Keyring::load_or_create(&key_file)?)
    } else {
        // The embedded set-up had its key in the environment too.
        target_keys.clone()
    };

    let mut export = tokio::task::block_in_place(|| Export::open(&file, source_keys))?;
    let target = crate::parts::postgres(&config, url, target_keys)?;
    target.migrate().await.context("the target's schema")?;
    let mut import = target.import().await?;
    let mut moved: Vec<(&str, usize)> = Vec::new();
    while let Some(portion) = tokio::task::block_in_place(|| export.next_portion())? {
        let (kind, rows) = portion.describe();
        match moved.last_mut() {
            Some((last, sum)) if *last == kind => *sum += rows,
            _ => moved.push((kind, rows)),
        }
        import.put(portion).await?;
    }
    import.finish().await?;
    target.close().await;
    report(from, &moved)
}

fn report(from: &Path, moved: &[(&str, usize)]) -> anyhow::Result<()> {
    for (kind, rows) in moved.iter().filter(|(kind, _)| *kind != "sequence") {
        say(format_args!("{kind:20} {rows:>10}"))?;
    }
    say(format_args!(
        "moved. {} is as it was: do not start Postrider on it again, it would send what waits a second time",
        from.display()
    ))
}

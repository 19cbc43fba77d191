//! `postrider migrate`.

use postrider_config::{Config, StoreTarget};
use postrider_store_sqlite::SqliteStore;

use crate::out::say;

/// Brings the schema up to date and says what it did.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    crate::logging::begin(&config)?;
    // Whoever serves an embedded store goes on with the schema that it opened.
    let _lock = crate::sole::lock(&config)?;
    // An embedded store is brought up to date when it is opened.
    let at_first = match config.store_target() {
        StoreTarget::Sqlite(path) if path.is_file() => Some(SqliteStore::schema_version(path)?),
        StoreTarget::Sqlite(_) => Some(0),
        StoreTarget::Postgres(_) => None,
    };
    let store = crate::parts::store(&config)?;
    let (before, after) = store.migrate().await?;
    let before = at_first.unwrap_or(before);
    if before == after {
        say(format_args!("the schema is at version {after}; nothing to do"))?;
    } else {
        say(format_args!("the schema went from version {before} to {after}"))?;
    }
    store.close().await;
    Ok(())
}

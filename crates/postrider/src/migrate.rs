//! `postrider migrate`.

use postrider_config::Config;

use crate::out::say;

/// Brings the schema up to date and says what it did.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let store = crate::parts::store(&config)?;
    let (before, after) = store.migrate().await?;
    if before == after {
        say(format_args!("the schema is at version {after}; nothing to do"))?;
    } else {
        say(format_args!("the schema went from version {before} to {after}"))?;
    }
    store.close().await;
    Ok(())
}

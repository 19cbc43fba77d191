//! `postrider migrate`.

use postrider_config::Config;

/// Brings the schema up to date and says what it did.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let store = crate::parts::store(&config)?;
    let (before, after) = store.migrate().await?;
    if before == after {
        println!("the schema is at version {after}; nothing to do");
    } else {
        println!("the schema went from version {before} to {after}");
    }
    store.close().await;
    Ok(())
}

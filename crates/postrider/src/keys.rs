//! `postrider key`: API keys by the command line, straight on the store.

use clap::Subcommand;
use postrider_config::Config;
use postrider_model::{KeyId, UnixMillis};
use postrider_secrets::{ApiKey, Scope};
use postrider_store::{AppRef, NewKey, Page, ResealCursor, SharedStore, StoredKey};

use crate::out::say;

/// Rows of one chunk.
const RESEAL_ROWS: u32 = 500;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a key and print it. It cannot be shown again.
    Create {
        /// admin: everything; ingest: send messages; app:ID: one application's endpoints, messages and attempts.
        #[arg(long)]
        scope: Scope,
        /// For people: who has it.
        #[arg(long, default_value = "")]
        name: String,
    },
    /// List all keys, newest first.
    List,
    /// Revoke a key; it stops working within ten seconds.
    Revoke {
        /// Its id, from `key list`.
        id: KeyId,
    },
    /// Seal anew, under the first secrets key, whatever an older one sealed. Safe while Postrider serves, and to repeat.
    Reseal,
}

/// Prints every key, newest first.
async fn list(store: &SharedStore) -> anyhow::Result<()> {
    let mut page = Page {
        after: None,
        backwards: false,
        descending: true,
        limit: 250,
    };
    loop {
        let mut keys = store.keys(&page).await?;
        let has_more = keys.len() > page.limit as usize;
        keys.truncate(page.limit as usize);
        for StoredKey { key, revoked_at } in &keys {
            let state = if revoked_at.is_some() { "revoked" } else { "live" };
            say(format_args!("{}  {state:7}  {}  {}", key.id, key.scope, key.name))?;
        }
        page.after = keys.last().map(|stored| stored.key.id);
        if !has_more {
            return Ok(());
        }
    }
}

/// Runs the command.
pub(crate) async fn run(config: Config, command: Command) -> anyhow::Result<()> {
    let store = crate::parts::existing_store(&config)?;
    store.check_schema().await?;
    match command {
        Command::Create { scope, name } => {
            check_scope(&store, &scope).await?;
            let key = create(&store, &scope, &name).await?;
            say(key.expose()).map_err(|error| {
                anyhow::anyhow!(
                    "{error:#}: the key {name} was made and not shown; revoke it (`key list`, `key revoke`)"
                )
            })?;
        }
        Command::List => list(&store).await?,
        Command::Revoke { id } => {
            anyhow::ensure!(
                store.revoke_key(id, UnixMillis::now()).await?,
                "there is no live key {id}"
            );
            say("revoked")?;
        }
        Command::Reseal => reseal(&config, &store).await?,
    }
    store.close().await;
    Ok(())
}

/// A key for an application that is not there would open nothing.
async fn check_scope(store: &SharedStore, scope: &Scope) -> anyhow::Result<()> {
    let Scope::App(text) = scope else { return Ok(()) };
    let is_there = match text.parse() {
        Ok(app) => store.app(&AppRef::Id(app)).await?.is_some(),
        Err(_) => false,
    };
    anyhow::ensure!(
        is_there,
        "there is no application {text}; its id begins with `app_`"
    );
    Ok(())
}

/// Walks over everything sealed, and says what it found.
async fn reseal(config: &Config, store: &SharedStore) -> anyhow::Result<()> {
    let current = crate::parts::keyring(config)?.current();
    let (mut cursor, mut lost) = (Some(ResealCursor::default()), 0);
    let (mut seen, mut resealed) = (0, 0);
    // Whoever stops reading does not stop the walk.
    let mut said = Ok(());
    while let Some(at) = cursor {
        let chunk = store.reseal(at, RESEAL_ROWS).await?;
        (seen, resealed) = (seen + chunk.seen, resealed + chunk.resealed);
        lost += chunk.unreadable.len();
        for why in chunk.unreadable {
            said = said.and(say(format_args!("unreadable: {why}")));
        }
        if chunk.next.is_none_or(|next| next.part != at.part) {
            said = said.and(say(format_args!(
                "{}: {seen} rows looked at, {resealed} values sealed anew",
                at.part.as_str()
            )));
            (seen, resealed) = (0, 0);
        }
        cursor = chunk.next;
    }
    anyhow::ensure!(
        lost == 0,
        "{lost} values are sealed with keys that are not in the list; nothing was lost by this run"
    );
    said.and(say(format_args!("everything is sealed with key {current}")))
}

/// Makes and stores a key.
pub(crate) async fn create(store: &SharedStore, scope: &Scope, name: &str) -> anyhow::Result<ApiKey> {
    let key = ApiKey::generate()?;
    let now = UnixMillis::now();
    let id = KeyId::generate(now, &mut rand::rng());
    let new = NewKey {
        id,
        hash: key.hash().0,
        scope: scope.to_string(),
        name: name.to_owned(),
        created_at: now,
    };
    store.create_key(&new).await?;
    Ok(key)
}

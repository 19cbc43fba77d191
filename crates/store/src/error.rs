//! What can go wrong in a store, told apart by what the caller can do about it.

/// A store's failure.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not reachable, or no answer in time: try again later.
    #[error("the store is unreachable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It is there and stopped the work at its time limit: less work, or the same at a quieter time, may succeed.
    #[error("the store took too long")]
    Slow(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A unique name is taken; the string says which (`uid`, `name`, `id`).
    #[error("the {0} is taken")]
    Conflict(&'static str),
    /// Somebody else changed the row since it was read: read it again.
    #[error("it was changed meanwhile")]
    Changed,
    /// The schema is older or newer than this program's.
    #[error("the store's schema is version {found}, this program needs {wanted}; {}", schema_advice(*.found, *.wanted))]
    Schema {
        /// What the store has.
        found: u32,
        /// What the program needs.
        wanted: u32,
    },
    /// A stored value cannot be decrypted or understood.
    #[error("a stored value is unreadable: {0}")]
    Corrupt(String),
    /// The data itself was refused (too large, not representable): the same call will fail again.
    #[error("the store refused the data")]
    Rejected(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn schema_advice(found: u32, wanted: u32) -> &'static str {
    if found < wanted {
        "run `postrider migrate`"
    } else {
        "a newer Postrider wrote it: run that one, or restore a backup from before"
    }
}

impl StoreError {
    /// Whether the same call may succeed later without a change.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Slow(_))
    }
}

//! Failures inside the adapter and what they are to callers.

use postrider_store::StoreError;

/// Why a piece of work stopped.
#[derive(Debug)]
pub(crate) enum Fail {
    /// Postgres or the way to it.
    Sql(sqlx::Error),
    /// Decided already.
    Store(StoreError),
    /// Another transaction changed the same rows: start again.
    Again,
    /// A row that was taken for new is there already.
    Repeated,
    /// A row's day has no partition.
    NoPartition,
}

pub(crate) type Work<T> = Result<T, Fail>;

impl From<sqlx::Error> for Fail {
    fn from(error: sqlx::Error) -> Self {
        match code(&error).as_deref() {
            Some("40001" | "40P01") => Self::Again,
            // A check that fails has a name. The words are the server's, in its language.
            Some("23514") if constraint(&error).is_none() => Self::NoPartition,
            Some("42P01") if names_a_day(message(&error)) => Self::NoPartition,
            _ => Self::Sql(error),
        }
    }
}

impl From<StoreError> for Fail {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

#[derive(Debug, thiserror::Error)]
enum Restarted {
    #[error("other writers keep changing the same rows")]
    Again,
    #[error("the day of a row has no partition")]
    NoPartition,
}

impl From<Fail> for StoreError {
    fn from(fail: Fail) -> Self {
        match fail {
            Fail::Store(error) => error,
            Fail::Again | Fail::Repeated => Self::Unavailable(Box::new(Restarted::Again)),
            Fail::NoPartition => Self::Unavailable(Box::new(Restarted::NoPartition)),
            Fail::Sql(error) => classify(error),
        }
    }
}

fn classify(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(_) => {
            let code = code(&error).unwrap_or_default();
            if code == "23505" {
                return StoreError::Conflict(taken(&error));
            }
            // `query_canceled`: by the limit of a statement.
            if code == "57014" {
                return StoreError::Slow(Box::new(error));
            }
            // Classes of SQLSTATE: 22 data exception, 23 integrity, 54 program limit exceeded. Everything else
            // (connection, resources, operator intervention, missing tables) may be put right without the caller.
            if code.starts_with("22") || code.starts_with("23") || code.starts_with("54") {
                return StoreError::Rejected(Box::new(error));
            }
            StoreError::Unavailable(Box::new(error))
        }
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => StoreError::Rejected(Box::new(error)),
        sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::TypeNotFound { .. } => StoreError::Corrupt(error.to_string()),
        _ => StoreError::Unavailable(Box::new(error)),
    }
}

/// Which name a unique violation is about.
fn taken(error: &sqlx::Error) -> &'static str {
    match constraint(error) {
        Some("applications_uid" | "endpoints_uid") => "uid",
        Some("event_types_pkey") => "name",
        _ => "id",
    }
}

/// The SQLSTATE, when Postgres answered.
pub(crate) fn code(error: &sqlx::Error) -> Option<String> {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .map(std::borrow::Cow::into_owned)
}

fn constraint(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error()?.constraint()
}

fn message(error: &sqlx::Error) -> &str {
    error.as_database_error().map_or("", |error| error.message())
}

/// Whether it is the partition of a day that is missing: `relation "deliveries_20261121" does not exist`, in any language.
fn names_a_day(message: &str) -> bool {
    let names = message.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    let mut days = names.filter_map(|name| name.rsplit_once('_'));
    days.any(|(_, day)| day.len() == 8 && day.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A stored value that cannot be understood.
pub(crate) fn corrupt(what: impl Into<String>) -> Fail {
    Fail::Store(StoreError::Corrupt(what.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_day_is_known_in_any_language() {
        assert!(names_a_day(r#"relation "deliveries_20261121" does not exist"#));
        assert!(names_a_day("Relation »attempts_20261121« existiert nicht"));
        assert!(names_a_day(
            "la relation « postrider.messages_20261121 » n'existe pas"
        ));
        assert!(!names_a_day(r#"relation "deliveries" does not exist"#));
        assert!(!names_a_day("la relation « waiting_2026 » n'existe pas"));
    }
}

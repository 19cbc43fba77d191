//! What can go wrong inside the adapter, and what callers see of it.

use postrider_store::StoreError;
use rusqlite::ErrorCode;

/// The adapter's own error, so that `?` works on both kinds.
#[derive(Debug)]
pub(crate) enum Fail {
    Sql(rusqlite::Error),
    Store(StoreError),
}

pub(crate) type Fallible<T> = Result<T, Fail>;

impl From<rusqlite::Error> for Fail {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Fail {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Fail> for StoreError {
    fn from(fail: Fail) -> Self {
        match fail {
            Fail::Store(error) => error,
            Fail::Sql(error) => classify(error),
        }
    }
}

/// Whether a unique index refused the row.
pub(crate) fn is_conflict(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}

/// The store is closing or gone.
pub(crate) fn unavailable(reason: &str) -> StoreError {
    StoreError::Unavailable(reason.into())
}

fn classify(error: rusqlite::Error) -> StoreError {
    match &error {
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::Utf8Error(..) => return StoreError::Corrupt(error.to_string()),
        _ => {}
    }
    match error.sqlite_error_code() {
        // Only the deadline of a read interrupts.
        Some(ErrorCode::OperationInterrupted) => StoreError::Slow(Box::new(error)),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(error.to_string()),
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::OperationAborted
            | ErrorCode::OutOfMemory
            | ErrorCode::ReadOnly
            | ErrorCode::SystemIoFailure
            | ErrorCode::DiskFull
            | ErrorCode::CannotOpen
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::PermissionDenied,
        ) => StoreError::Unavailable(Box::new(error)),
        _ => StoreError::Rejected(Box::new(error)),
    }
}

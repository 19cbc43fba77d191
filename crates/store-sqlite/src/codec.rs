//! Between rows and the model: ids, enums, lists.

use std::error::Error;

use postrider_model::{
    AppId, AttemptClass, AttemptId, CancelReason, DeferReason, DeliveryId, DeliveryState, EndpointId,
    EventTypeId, KeyId, MessageId, TaskId, Trigger, UnixMillis,
};
use postrider_store::{Page, TimeRange};
use rusqlite::types::{FromSql, Type, Value};
use rusqlite::{Result, Row};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// An id of the model, made from its stored bytes.
pub(crate) trait StoredId: Sized {
    fn stored(uuid: Uuid) -> Self;
}

macro_rules! stored_ids {
    ($($name:ident),*) => {$(
        impl StoredId for $name {
            fn stored(uuid: Uuid) -> Self {
                Self::from_uuid(uuid)
            }
        }
    )*};
}

stored_ids!(
    AppId,
    AttemptId,
    DeliveryId,
    EndpointId,
    EventTypeId,
    KeyId,
    MessageId,
    TaskId
);

fn unreadable(column: usize, what: impl Into<Box<dyn Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Null, what.into())
}

pub(crate) fn id<T: StoredId>(row: &Row<'_>, column: usize) -> Result<T> {
    let bytes: [u8; 16] = row.get(column)?;
    Ok(T::stored(Uuid::from_bytes(bytes)))
}

pub(crate) fn id_opt<T: StoredId>(row: &Row<'_>, column: usize) -> Result<Option<T>> {
    let bytes: Option<[u8; 16]> = row.get(column)?;
    Ok(bytes.map(|bytes| T::stored(Uuid::from_bytes(bytes))))
}

pub(crate) fn time(row: &Row<'_>, column: usize) -> Result<UnixMillis> {
    row.get(column).map(UnixMillis)
}

pub(crate) fn time_opt(row: &Row<'_>, column: usize) -> Result<Option<UnixMillis>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(UnixMillis))
}

fn number<N: FromSql, T>(row: &Row<'_>, column: usize, read: impl Fn(N) -> Option<T>) -> Result<T> {
    read(row.get(column)?).ok_or_else(|| unreadable(column, "unknown number"))
}

pub(crate) fn state(row: &Row<'_>, column: usize) -> Result<DeliveryState> {
    number(row, column, DeliveryState::from_stored)
}

pub(crate) fn reason(row: &Row<'_>, column: usize) -> Result<DeferReason> {
    number(row, column, DeferReason::from_stored)
}

pub(crate) fn class(row: &Row<'_>, column: usize) -> Result<AttemptClass> {
    number(row, column, AttemptClass::from_stored)
}

pub(crate) fn origin(row: &Row<'_>, column: usize) -> Result<Trigger> {
    number(row, column, |value: i16| match value {
        0 => Some(Trigger::Scheduled),
        1 => Some(Trigger::Manual),
        _ => None,
    })
}

pub(crate) fn state_number(state: DeliveryState) -> i64 {
    i64::from(state as u8)
}

pub(crate) fn reason_number(reason: DeferReason) -> i64 {
    i64::from(reason as u8)
}

pub(crate) fn origin_number(origin: Trigger) -> i64 {
    i64::from(origin as u8)
}

pub(crate) fn cancel_number(reason: CancelReason) -> i64 {
    i64::from(reason as u8)
}

/// JSON text of a list, a map or anything else that always has one.
pub(crate) fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

pub(crate) fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text).map_err(|error| unreadable(column, error))
}

/// A value that must be readable, or else the column is corrupt.
pub(crate) fn readable<T, E>(column: usize, value: std::result::Result<T, E>) -> Result<T>
where
    E: Error + Send + Sync + 'static,
{
    value.map_err(|error| unreadable(column, error))
}

/// `NULL` for none, else JSON.
pub(crate) fn channels_text(channels: &[String]) -> Result<Option<String>> {
    if channels.is_empty() {
        Ok(None)
    } else {
        to_json(&channels).map(Some)
    }
}

pub(crate) fn channels(row: &Row<'_>, column: usize) -> Result<Vec<String>> {
    if row.get_ref(column)?.as_str_or_null()?.is_none() {
        return Ok(Vec::new());
    }
    from_json(row, column)
}

/// How a page walks an index.
pub(crate) struct Walk {
    /// Against the order of the index.
    pub(crate) down: bool,
    /// Rows to read: one more than wanted, to tell whether there are more.
    pub(crate) rows: i64,
    /// The rows come in the order opposite to the list's.
    pub(crate) turn: bool,
}

impl Walk {
    pub(crate) fn of<Cursor>(page: &Page<Cursor>) -> Self {
        Self {
            down: page.descending != page.backwards,
            rows: i64::from(page.limit.clamp(1, 250)) + 1,
            turn: page.backwards,
        }
    }

    /// The comparison that holds for rows after the cursor.
    pub(crate) fn beyond(&self) -> &'static str {
        if self.down { "<" } else { ">" }
    }

    pub(crate) fn order(&self) -> &'static str {
        if self.down { "DESC" } else { "ASC" }
    }

    /// The ids of the page and the time as `from <= id < to`. One bound on each side, since an index seek takes no
    /// more, and always both, since `? IS NULL OR …` cannot seek.
    pub(crate) fn bounds(&self, after: Option<&[u8; 16]>, range: TimeRange) -> (Vec<u8>, Vec<u8>) {
        let mut from = range
            .after
            .map_or(Vec::new(), |after| floor(after.0.saturating_add(1)));
        let mut to = range.before.map_or(vec![0xff; 17], |before| floor(before.0));
        if let Some(after) = after {
            if self.down {
                to = to.min(after.to_vec());
            } else {
                // The least value above the cursor.
                from = from.max([&after[..], &[0]].concat());
            }
        }
        (from, to)
    }

    /// The same for lists of deliveries, whose rows are told apart by two ids: `(low, low) < (id, delivery) < (high,
    /// high)`. An empty BLOB sorts before every id, so a bound on the time is one on the first id alone.
    pub(crate) fn span(&self, after: Option<(&[u8; 16], &[u8; 16])>, range: TimeRange) -> [Vec<u8>; 4] {
        let (from, to) = self.bounds(None, range);
        let (mut low, mut high) = ((from, Vec::new()), (to, Vec::new()));
        if let Some((id, delivery)) = after {
            let cursor = (id.to_vec(), delivery.to_vec());
            if self.down {
                high = high.min(cursor);
            } else {
                low = low.max(cursor);
            }
        }
        [low.0, low.1, high.0, high.1]
    }

    /// Where a list of names starts. In SQLite every BLOB sorts after every TEXT.
    pub(crate) fn start_name(&self, after: Option<&str>) -> Value {
        match after {
            Some(name) => Value::Text(name.to_owned()),
            None if self.down => Value::Blob(Vec::new()),
            None => Value::Text(String::new()),
        }
    }

    /// Puts rows as they were read into the list's order.
    pub(crate) fn arrange<T>(&self, mut rows: Vec<T>) -> Vec<T> {
        if self.turn {
            rows.reverse();
        }
        rows
    }
}

/// The smallest id of a time; kinds do not matter.
fn floor(millis: i64) -> Vec<u8> {
    MessageId::floor(UnixMillis(millis)).as_bytes().to_vec()
}

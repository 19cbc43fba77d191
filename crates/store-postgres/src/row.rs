//! Small conversions between rows and the domain, and keyset pages.

use std::borrow::Cow;
use std::time::Duration;

use postrider_model::UnixMillis;
use postrider_store::{Page, TimeRange};
use uuid::Uuid;

use crate::error::{Work, corrupt};

/// Postgres' text holds no NUL: U+FFFD takes its place.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// The same for an optional text.
pub(crate) fn clean_opt(text: Option<&String>) -> Option<Cow<'_, str>> {
    text.map(|text| clean(text))
}

/// The same for a list.
pub(crate) fn clean_all(texts: &[String]) -> Vec<Cow<'_, str>> {
    texts.iter().map(|text| clean(text)).collect()
}

/// A stored count that fits.
pub(crate) fn to_u32(value: i64) -> Work<u32> {
    u32::try_from(value).map_err(|_| corrupt(format!("{value} is not a count")))
}

/// Milliseconds of a duration, saturating.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A stored length of time.
pub(crate) fn to_duration(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// The smallest id of a time. Ids reach to the year 10889; later times mean "no bound".
pub(crate) fn floor(at: UnixMillis) -> Uuid {
    const LAST: i64 = (1 << 48) - 1;
    let millis = u128::try_from(at.0.clamp(0, LAST)).unwrap_or(0);
    Uuid::from_u128(millis << 80)
}

/// Where a row is in a list: its key, and the second one where one does not tell rows apart.
pub(crate) type Place = (Uuid, Uuid);

/// A keyset page as bounds on the key and an order.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    /// Keys from here on.
    pub(crate) low: Uuid,
    /// Keys before this.
    pub(crate) high: Uuid,
    /// Where rows are told apart by a second key: of the rows with the low key, those from here on.
    pub(crate) low_second: Uuid,
    /// Of the rows with the high key, those before this.
    pub(crate) high_second: Uuid,
    /// Read from the high end.
    pub(crate) descending: bool,
    /// Rows to read: one more than the page holds.
    pub(crate) limit: i64,
    reverse: bool,
    /// The place after a row's.
    next: fn(Place) -> Place,
}

impl Window {
    /// The rows of `page` with keys made in `range`.
    pub(crate) fn new<C>(page: &Page<C>, range: TimeRange, key: impl Fn(&C) -> Uuid) -> Self {
        Self::between(
            page,
            range,
            |after| (key(after), Uuid::nil()),
            |key| (next(key.0), key.1),
        )
    }

    /// The same for rows that are told apart by two keys, of which the first is the one made in `range`.
    pub(crate) fn of_pairs<C>(page: &Page<C>, range: TimeRange, key: impl Fn(&C) -> Place) -> Self {
        Self::between(page, range, key, |key| (key.0, next(key.1)))
    }

    fn between<C>(
        page: &Page<C>,
        range: TimeRange,
        key: impl Fn(&C) -> Place,
        next: fn(Place) -> Place,
    ) -> Self {
        let from = |after: UnixMillis| floor(UnixMillis(after.0.saturating_add(1)));
        let mut low = (range.after.map_or(Uuid::nil(), from), Uuid::nil());
        let mut high = (range.before.map_or(Uuid::max(), floor), Uuid::nil());
        let descending = page.descending != page.backwards;
        if let Some(after) = page.after.as_ref().map(key) {
            if descending {
                high = high.min(after);
            } else {
                low = low.max(next(after));
            }
        }
        Self {
            low: low.0,
            high: high.0,
            low_second: low.1,
            high_second: high.1,
            descending,
            limit: i64::from(page.limit.clamp(1, 250)) + 1,
            reverse: page.backwards,
            next,
        }
    }

    /// The part of it up to a row, that one included, and the part behind.
    pub(crate) fn split(self, row: Place) -> (Self, Self) {
        let (mut near, mut far) = (self, self);
        if self.descending {
            (near.low, near.low_second) = row;
            (far.high, far.high_second) = row;
        } else {
            let next = (self.next)(row);
            (near.high, near.high_second) = next;
            (far.low, far.low_second) = next;
        }
        (near, far)
    }

    /// Rows as read, in the order of the list.
    pub(crate) fn arrange<T>(&self, mut rows: Vec<T>) -> Vec<T> {
        if self.reverse {
            rows.reverse();
        }
        rows
    }
}

/// The key after this one.
pub(crate) fn next(key: Uuid) -> Uuid {
    Uuid::from_u128(key.as_u128().saturating_add(1))
}

/// The keys made in the same millisecond: a message's deliveries are among them.
pub(crate) fn same_millisecond(key: Uuid) -> (Uuid, Uuid) {
    let millis = key.as_u128() >> 80;
    let low = Uuid::from_u128(millis << 80);
    let high = Uuid::from_u128(
        (millis + 1)
            .checked_shl(80)
            .filter(|high| *high > 0)
            .unwrap_or(u128::MAX),
    );
    (low, high)
}

/// Two statements that differ in their order only, the ascending one first: `$1` rows, or with `skip` the one row behind
/// so many. Static, so that they can be kept prepared.
macro_rules! keyset {
    (skip $head:expr, $($key:literal),+) => { keyset!(@both $head, " LIMIT 1 OFFSET $1", $($key),+) };
    (@both $head:expr, $tail:literal, $($key:literal),+) => {
        [
            concat!($head, " ORDER BY ", keyset!(@list " ASC", $($key),+), $tail),
            concat!($head, " ORDER BY ", keyset!(@list " DESC", $($key),+), $tail),
        ]
    };
    (@list $order:literal, $key:literal) => { concat!($key, $order) };
    (@list $order:literal, $key:literal, $($rest:literal),+) => {
        concat!($key, $order, ", ", keyset!(@list $order, $($rest),+))
    };
    ($head:expr, $($key:literal),+) => { keyset!(@both $head, " LIMIT $1", $($key),+) };
}
pub(crate) use keyset;

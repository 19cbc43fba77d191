//! How a page of a list is read: row by row along the list's index, until it is full or one of its bounds is reached.

use std::time::Instant;

use postrider_store::{PAGE_LOOKED_ROWS, PAGE_LOOKED_TIME, PAGE_PAYLOAD_BYTES, Part};
use rusqlite::{Row, Rows};

use crate::codec::Walk;
use crate::error::Fallible;

/// A filter's answer in a column; `NULL` is no.
pub(super) fn is_wanted(row: &Row<'_>, column: usize) -> rusqlite::Result<bool> {
    Ok(row.get::<_, Option<bool>>(column)?.unwrap_or(false))
}

/// Reads a page. `read` makes an item of a row, `None` of one that the filter leaves out; `payload_bytes` is what an
/// item takes of the page's bytes, `place` where a row is in the list. Only a selective filter has bounds of its own.
pub(super) fn look<T, C>(
    mut rows: Rows<'_>,
    walk: &Walk,
    is_selective: bool,
    read: impl Fn(&Row<'_>) -> Fallible<Option<T>>,
    payload_bytes: impl Fn(&T) -> usize,
    place: impl Fn(&Row<'_>) -> rusqlite::Result<C>,
) -> Fallible<Part<T, C>> {
    let began = Instant::now();
    let page_rows = usize::try_from(walk.rows).unwrap_or(usize::MAX);
    let (mut found, mut cut) = (Vec::new(), None);
    let (mut bytes, mut looked) = (0, 0);
    while found.len() < page_rows
        && cut.is_none()
        && let Some(row) = rows.next()?
    {
        looked += 1;
        if let Some(item) = read(row)? {
            bytes += payload_bytes(&item);
            found.push(item);
        }
        let has_looked = is_selective && (looked >= PAGE_LOOKED_ROWS || began.elapsed() >= PAGE_LOOKED_TIME);
        if found.len() < page_rows && (bytes >= PAGE_PAYLOAD_BYTES || has_looked) {
            cut = Some(place(row)?);
        }
    }
    Ok(Part {
        rows: walk.arrange(found),
        cut,
    })
}

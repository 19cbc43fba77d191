//! Query parameters and pages.
//!
//! A page is asked for with `limit` (1 to 250, 50 by default) and `iterator`, the place of the last item of the page
//! before (an id, or two where one does not tell items apart; callers see text that they pass on); an iterator with a
//! leading `-` asks for the page before that place. A page that the store cut short names the last place that was looked
//! at as its end, which need not be that of an item.

use std::fmt::Display;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use http::request::Parts;
use jiff::fmt::temporal::DateTimePrinter;
use postrider_model::UnixMillis;
use postrider_store::{Page, Part, TimeRange};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::error::Error;
use crate::state::Api;

pub(crate) const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 250;
/// Comes before the iterator of a page behind a name that begins with `-`, which stands for the page before.
const AFTER: char = '=';

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListResponse<T> {
    /// The items.
    pub(crate) data: Vec<T>,
    /// Pass it as `iterator` for the next page.
    pub(crate) iterator: Option<String>,
    /// Pass it as `iterator` for the page before.
    pub(crate) prev_iterator: Option<String>,
    /// Whether there is nothing more in this direction. A page with filters, or with large payloads, may be short or empty
    /// and not be done: go on with its iterator.
    pub(crate) done: bool,
}

/// Order of a catalogue's list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ordering {
    /// Oldest (or first name) first.
    #[default]
    Ascending,
    /// Newest (or last name) first.
    Descending,
}

/// Which page of a list.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// Most items of the page.
    #[param(minimum = 1, maximum = 250, default = 50)]
    pub(crate) limit: Option<u32>,
    /// The iterator of an earlier page.
    pub(crate) iterator: Option<String>,
    /// Order of the items.
    #[param(inline)]
    pub(crate) order: Option<Ordering>,
}

/// Query parameters as they came, names without `[]`.
pub(crate) struct Params(Vec<(String, String)>);

/// A set of query parameters.
pub(crate) trait FromParams: Sized {
    /// 422 with the parameter's name as the place.
    fn from_params(params: &Params) -> Result<Self, Error>;
}

/// Extracts a [`FromParams`].
pub(crate) struct Query<T>(pub(crate) T);

impl<T: FromParams> FromRequestParts<Api> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _api: &Api) -> Result<Self, Error> {
        let query = parts.uri.query().unwrap_or_default();
        T::from_params(&Params::parse(query)).map(Query)
    }
}

impl Params {
    pub(crate) fn parse(query: &str) -> Self {
        let pairs = url::form_urlencoded::parse(query.as_bytes())
            .map(|(name, value)| (name.trim_end_matches("[]").to_owned(), value.into_owned()));
        Self(pairs.collect())
    }

    /// The last value of this name.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let pair = self.0.iter().rev().find(|pair| pair.0 == name)?;
        Some(pair.1.as_str())
    }

    /// A value of a type that says itself what is wrong.
    pub(crate) fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, Error>
    where
        T::Err: Display,
    {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let parsed = text
            .parse()
            .map_err(|error: T::Err| Error::invalid(&["query", name], sentence(&error)))?;
        Ok(Some(parsed))
    }

    /// Most items of a page, 1 to 250.
    pub(crate) fn limit(&self) -> Result<Option<u32>, Error> {
        let limit = self.parsed::<u32>("limit")?;
        if limit.is_some_and(|limit| !(1..=LIMIT_MAX).contains(&limit)) {
            return Err(Error::invalid(&["query", "limit"], "Must be 1 to 250."));
        }
        Ok(limit)
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, Error> {
        match self.text(name) {
            None => Ok(None),
            Some("true" | "1" | "") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(_) => Err(Error::invalid(&["query", name], "Must be `true` or `false`.")),
        }
    }

    /// All values of this name; a value may hold several, separated by commas.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        let values = self.0.iter().filter(|pair| pair.0 == name);
        let parts = values.flat_map(|pair| pair.1.split(','));
        parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    /// A time in RFC 3339; without an offset it is UTC.
    pub(crate) fn time(&self, name: &str) -> Result<Option<UnixMillis>, Error> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let time = parse_time(text).ok_or_else(|| Error::invalid(&["query", name], TIME_RULE))?;
        Ok(Some(time))
    }

    /// `before` and `after`.
    pub(crate) fn range(&self) -> Result<TimeRange, Error> {
        Ok(TimeRange {
            after: self.time("after")?,
            before: self.time("before")?,
        })
    }
}

/// The rule for times.
pub(crate) const TIME_RULE: &str = "Must be a time such as 2026-01-31T12:00:00Z (RFC 3339).";

/// A time in RFC 3339; without an offset it is UTC.
pub(crate) fn parse_time(text: &str) -> Option<UnixMillis> {
    // A `+` that was not percent-encoded arrives as a blank.
    let text = text.replace(' ', "+");
    let time = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    })?;
    Some(UnixMillis(time.as_millisecond()))
}

/// A time as the API shows it: always with milliseconds, so that texts sort as times do.
pub(crate) fn show_time(at: UnixMillis) -> String {
    static PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
    let time = jiff::Timestamp::from_millisecond(at.0).unwrap_or(jiff::Timestamp::MAX);
    PRINTER.timestamp_to_string(&time)
}

/// An error's words as a sentence.
pub(crate) fn sentence(error: &impl Display) -> String {
    let text = error.to_string();
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string());
    format!("{}{}.", first.unwrap_or_default(), chars.as_str())
}

impl FromParams for PageQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        let limit = params.limit()?;
        let order = match params.text("order") {
            None => None,
            Some("ascending") => Some(Ordering::Ascending),
            Some("descending") => Some(Ordering::Descending),
            Some(_) => {
                let msg = "Must be `ascending` or `descending`.";
                return Err(Error::invalid(&["query", "order"], msg));
            }
        };
        Ok(Self {
            limit,
            iterator: params
                .text("iterator")
                .filter(|text| !text.is_empty())
                .map(str::to_owned),
            order,
        })
    }
}

impl PageQuery {
    /// The store's page; `descending` unless the caller ordered otherwise.
    pub(crate) fn page<C: FromStr>(&self, descending: bool) -> Result<Page<C>, Error> {
        let (backwards, cursor) = match self.iterator.as_deref() {
            None => (false, None),
            Some(text) => match text.strip_prefix('-') {
                Some(rest) => (true, Some(rest)),
                None => (false, Some(text.strip_prefix(AFTER).unwrap_or(text))),
            },
        };
        let bad = || {
            Error::invalid(
                &["query", "iterator"],
                "Must be an iterator from an earlier page.",
            )
        };
        let after = cursor
            .map(|text| text.parse::<C>().map_err(|_| bad()))
            .transpose()?;
        Ok(Page {
            after,
            backwards,
            descending: self
                .order
                .map_or(descending, |order| order == Ordering::Descending),
            limit: self.limit.unwrap_or(LIMIT_DEFAULT),
        })
    }

    /// The response for rows of [`PageQuery::page`], which may be one more than asked for.
    pub(crate) fn respond<R, T>(
        &self,
        rows: Vec<R>,
        cursor: impl Fn(&R) -> String,
        show: impl FnMut(R) -> T,
    ) -> ListResponse<T> {
        self.respond_part(Part::whole(rows), cursor, show)
    }

    /// As [`PageQuery::respond`], for a page that the store may have cut.
    pub(crate) fn respond_part<R, C: Display, T>(
        &self,
        part: Part<R, C>,
        cursor: impl Fn(&R) -> C,
        show: impl FnMut(R) -> T,
    ) -> ListResponse<T> {
        let Part { mut rows, cut } = part;
        let limit = usize::try_from(self.limit.unwrap_or(LIMIT_DEFAULT)).unwrap_or(usize::MAX);
        let backwards = self.iterator.as_deref().is_some_and(|text| text.starts_with('-'));
        let done = rows.len() <= limit && cut.is_none();
        if rows.len() > limit {
            if backwards {
                rows.drain(..rows.len() - limit);
            } else {
                rows.truncate(limit);
            }
        }
        let asked = self.iterator.as_ref().filter(|_| !backwards).cloned();
        let forward = |cursor: String| {
            if cursor.starts_with('-') {
                format!("{AFTER}{cursor}")
            } else {
                cursor
            }
        };
        let place = |row: &R| cursor(row).to_string();
        let (mut first, mut last) = (rows.first().map(place), rows.last().map(place));
        if let Some(cut) = cut.map(|cut| cut.to_string()) {
            // Where the page has no item, no item lies between its end and the place that it was asked from.
            let (end, start) = if backwards {
                (&mut first, &mut last)
            } else {
                (&mut last, &mut first)
            };
            start.get_or_insert_with(|| cut.clone());
            *end = Some(cut);
        }
        ListResponse {
            iterator: last.map(forward).or(asked),
            prev_iterator: first.map(|cursor| format!("-{cursor}")),
            data: rows.into_iter().map(show).collect(),
            done,
        }
    }
}

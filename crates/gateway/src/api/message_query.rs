//! Which messages a list shows, and how much of them.

use postrider_model::UnixMillis;
use postrider_store::TimeRange;
use utoipa::IntoParams;

use crate::error::Error;
use crate::page::{FromParams, Params};

/// Whether payloads come along.
#[derive(Clone, Copy, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ContentQuery {
    /// With payloads.
    #[param(default = true)]
    with_content: Option<bool>,
}

impl ContentQuery {
    pub(crate) fn wanted(self) -> bool {
        self.with_content.unwrap_or(true)
    }
}

impl FromParams for ContentQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        let with_content = params.flag("with_content")?;
        Ok(Self { with_content })
    }
}

/// Which messages.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct MessageQuery {
    /// With this channel.
    #[param(value_type = Option<String>)]
    pub(crate) channel: Option<String>,
    /// Of these types: `a,b` or repeated.
    #[param(value_type = Option<Vec<String>>)]
    pub(crate) event_types: Vec<String>,
    /// Made before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    pub(crate) before: Option<UnixMillis>,
    /// Made after this time.
    #[param(value_type = Option<String>, format = DateTime)]
    pub(crate) after: Option<UnixMillis>,
}

impl FromParams for MessageQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        if params.text("tag").is_some_and(|tag| !tag.is_empty()) {
            return Err(Error::invalid(
                &["query", "tag"],
                "Tags are not supported; use channels.",
            ));
        }
        let range = params.range()?;
        Ok(Self {
            channel: params
                .text("channel")
                .filter(|text| !text.is_empty())
                .map(str::to_owned),
            event_types: params.list("event_types"),
            before: range.before,
            after: range.after,
        })
    }
}

impl MessageQuery {
    pub(crate) fn range(&self) -> TimeRange {
        TimeRange {
            after: self.after,
            before: self.before,
        }
    }
}

//! A message as it comes in: parsed once, its payload kept as the very bytes that came.

use bytes::Bytes;
use postrider_model::{Message, MessageId};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::application_in::ApplicationIn;
use crate::accept::Draft;
use crate::error::Error;
use crate::validate::Problems;

/// Most channels of a message.
pub(crate) const CHANNELS_MAX: usize = 5;
/// Days that a payload may be kept.
const RETENTION_DAYS: std::ops::RangeInclusive<u16> = 5..=90;
pub(crate) const JSON: &str = "application/json";

/// A message to send.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessageIn<'a> {
    /// What kind of event it is.
    #[schema(max_length = 256, pattern = r"^[a-zA-Z0-9\-_.]+$")]
    pub(crate) event_type: String,
    /// The body, a JSON object; sent byte for byte as it came.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    pub(crate) payload: &'a RawValue,
    /// Your own id for it, unique for 24 hours.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[a-zA-Z0-9\-_.]+$")]
    pub(crate) event_id: Option<String>,
    /// Channels that it goes to.
    #[schema(min_items = 1, max_items = 5)]
    pub(crate) channels: Option<Vec<String>>,
    /// Days that the payload is kept; without it as many as the server's `retention.payload_days`.
    #[schema(minimum = 5, maximum = 90)]
    pub(crate) payload_retention_period: Option<u16>,
    /// An application to create if there is none of the path's uid.
    pub(crate) application: Option<ApplicationIn>,
    /// A body that is not JSON: `{"rawPayload": text, "headers": {"content-type": type}}`.
    #[schema(value_type = Option<Object>)]
    transformations_params: Option<RawParams>,
    /// Not supported.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    tags: Option<Vec<IgnoredAny>>,
    /// Not supported.
    #[schema(value_type = Option<String>)]
    deliver_at: Option<IgnoredAny>,
    /// Not supported; `payloadRetentionPeriod` counts days.
    #[schema(value_type = Option<u32>)]
    payload_retention_hours: Option<IgnoredAny>,
}

/// What client libraries send for a body that is not JSON.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawParams {
    raw_payload: Option<String>,
    #[serde(default)]
    headers: RawHeaders,
}

#[derive(Default, Deserialize)]
struct RawHeaders {
    #[serde(rename = "content-type")]
    content_type: Option<String>,
}

impl MessageIn<'_> {
    /// Checks it and takes its payload out of `body`, the buffer that it was parsed from.
    pub(crate) fn into_draft(self, index: u32, body: &Bytes, payload_max: usize) -> Result<Draft, Error> {
        let mut problems = Problems::default();
        problems.name(&["body", "eventType"], &self.event_type);
        problems.uid(&["body", "eventId"], self.event_id.as_deref(), MessageId::PREFIX);
        problems.channels(&["body", "channels"], self.channels.as_deref(), CHANNELS_MAX);
        let retention_ok = self
            .payload_retention_period
            .is_none_or(|days| RETENTION_DAYS.contains(&days));
        let loc = ["body", "payloadRetentionPeriod"];
        problems.check(retention_ok, &loc, "Must be 5 to 90 days.");
        let is_object = self.payload.get().starts_with('{');
        problems.check(is_object, &["body", "payload"], "Payload must be an object.");
        let tagged = self.tags.is_some_and(|tags| !tags.is_empty());
        problems.check(
            !tagged,
            &["body", "tags"],
            "Tags are not supported; use channels.",
        );
        let loc = ["body", "deliverAt"];
        problems.check(
            self.deliver_at.is_none(),
            &loc,
            "Later delivery is not supported.",
        );
        let loc = ["body", "payloadRetentionHours"];
        problems.check(
            self.payload_retention_hours.is_none(),
            &loc,
            "Hours are not supported; use payloadRetentionPeriod, in days.",
        );
        let raw = self.transformations_params.unwrap_or_default();
        let content_type = raw.headers.content_type.filter(|_| raw.raw_payload.is_some());
        if let Some(content_type) = &content_type {
            check_content_type(
                content_type,
                &["body", "transformationsParams", "headers"],
                &mut problems,
            );
        }
        problems.done()?;
        let payload = match raw.raw_payload {
            Some(text) => Bytes::from(text),
            None => body.slice_ref(self.payload.get().as_bytes()),
        };
        if payload.len() > payload_max {
            return Err(Error::too_large(payload_max));
        }
        Ok(Draft {
            index,
            event_type: self.event_type,
            event_id: self.event_id,
            channels: self.channels.unwrap_or_default(),
            content_type: content_type.unwrap_or_else(|| JSON.to_owned()),
            payload,
            retention_days: self.payload_retention_period,
        })
    }
}

/// A content type goes out as a header: printable and short.
pub(crate) fn check_content_type(text: &str, loc: &[&str], problems: &mut Problems) {
    let ok = text.len() <= 256 && text.contains('/') && http::HeaderValue::try_from(text).is_ok();
    problems.check(
        ok,
        loc,
        "Must be a media type such as text/xml, of at most 256 characters.",
    );
}

/// The payload as JSON, when it is a JSON object.
pub(crate) fn json_payload(message: &Message) -> Option<Box<RawValue>> {
    let text = std::str::from_utf8(&message.payload).ok()?;
    let value = RawValue::from_string(text.to_owned()).ok()?;
    value.get().starts_with('{').then_some(value)
}

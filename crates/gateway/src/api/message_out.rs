//! Messages as the API shows them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postrider_model::{Message, MessageId};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::endpoint_out::non_empty;
use super::message_in::{JSON, json_payload};
use crate::page::show_time;

/// A message.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessageOut {
    #[schema(value_type = String)]
    id: MessageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    event_type: String,
    channels: Option<Vec<String>>,
    /// The payload; `{}` when not asked for, removed, or not a JSON object.
    #[schema(value_type = Object)]
    #[serde(serialize_with = "object")]
    payload: Option<Box<RawValue>>,
    #[schema(format = DateTime)]
    timestamp: String,
    /// Set for a body that is not a JSON object.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    /// A body that is not a JSON object, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl MessageOut {
    pub(crate) fn new(message: &Message, with_content: bool) -> Self {
        let is_shown = with_content && message.content_type == JSON;
        let json = if is_shown { json_payload(message) } else { None };
        Self::with_payload(message, with_content, json)
    }

    /// Of a message that was just accepted, whose payload was `parsed` as a part of its request: it is not parsed again.
    pub(crate) fn accepted(message: &Message, with_content: bool, parsed: &RawValue) -> Self {
        // The request may bring a body of another kind, which is the payload then. If not, it was seen to be an object.
        let is_payload = std::ptr::eq(message.payload.as_ref(), parsed.get().as_bytes());
        if with_content && is_payload && message.content_type == JSON {
            return Self::with_payload(message, true, Some(parsed.to_owned()));
        }
        Self::new(message, with_content)
    }

    /// Bytes of what it shows of the payload.
    pub(crate) fn payload_bytes(&self) -> usize {
        let json = self.payload.as_ref().map_or(0, |json| json.get().len());
        json + self.payload_base64.as_ref().map_or(0, String::len)
    }

    fn with_payload(message: &Message, with_content: bool, json: Option<Box<RawValue>>) -> Self {
        let is_raw = with_content && json.is_none() && !message.payload.is_empty();
        let is_other = is_raw || message.content_type != JSON;
        Self {
            id: message.id,
            event_id: message.event_id.clone(),
            event_type: message.event_type.clone(),
            channels: non_empty(message.channels.clone()),
            payload: json,
            timestamp: show_time(message.id.created_at()),
            content_type: is_other.then(|| message.content_type.clone()),
            payload_base64: is_raw.then(|| STANDARD.encode(&message.payload)),
        }
    }
}

/// `{}` where there is nothing to show.
fn object<S: Serializer>(payload: &Option<Box<RawValue>>, serializer: S) -> Result<S::Ok, S::Error> {
    match payload {
        Some(json) => json.serialize(serializer),
        None => serializer.serialize_map(Some(0))?.end(),
    }
}

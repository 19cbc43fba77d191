//! Attempts as the API shows them.

use postrider_model::{AttemptClass, AttemptId, EndpointId, MessageId, Trigger};
use postrider_store::AttemptRow;
use serde::Serialize;
use utoipa::ToSchema;

use super::message_out::MessageOut;
use crate::page::show_time;

/// One POST and what came of it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessageAttemptOut {
    #[schema(value_type = String)]
    id: AttemptId,
    #[schema(value_type = String)]
    pub(super) msg_id: MessageId,
    #[schema(value_type = String)]
    endpoint_id: EndpointId,
    url: String,
    /// The start of the response's body, or the error in words when there was no response.
    response: String,
    /// 0 when there was no response.
    response_status_code: u16,
    response_duration_ms: u64,
    /// 0 success, 2 fail.
    status: u8,
    status_text: &'static str,
    /// 0 scheduled, 1 manual.
    trigger_type: u8,
    #[schema(format = DateTime)]
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) msg: Option<MessageOut>,
}

impl MessageAttemptOut {
    pub(super) fn new(row: AttemptRow, with_content: bool) -> Self {
        let success = row.attempt.class == AttemptClass::Success;
        let response = if with_content {
            String::from_utf8_lossy(&row.attempt.response).into_owned()
        } else {
            String::new()
        };
        Self {
            id: row.attempt.id,
            msg_id: row.message,
            endpoint_id: row.endpoint,
            url: row.attempt.url,
            response,
            response_status_code: row.attempt.status,
            response_duration_ms: u64::try_from(row.attempt.duration.as_millis()).unwrap_or(u64::MAX),
            status: if success { 0 } else { 2 },
            status_text: if success { "success" } else { "fail" },
            trigger_type: row.trigger as u8,
            timestamp: show_time(row.attempt.started_at),
            msg: None,
        }
    }
}

const _: () = assert!(
    Trigger::Scheduled as u8 == 0 && Trigger::Manual as u8 == 1,
    "the wire's numbers"
);

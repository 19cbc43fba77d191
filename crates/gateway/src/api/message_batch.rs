//! Many messages in one request, each with its own result.

use std::fmt;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::Path;
use super::message::{event_id_taken, traceparent};
use super::message_in::MessageIn;
use super::message_out::MessageOut;
use super::message_query::ContentQuery;
use crate::accept::may_begin;
use crate::accept::{self, Draft, Target, Verdict, accept};
use crate::body;
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::idempotency::{IdempotencyKey, digest};
use crate::page::Query;
use crate::state::{Api, app_ref};

/// Messages to send.
#[derive(Deserialize, ToSchema)]
pub(crate) struct BatchIn<'a> {
    /// As many as `ingest.batch_max_messages` at most, which is 1,000 by default.
    #[serde(borrow, deserialize_with = "bounded")]
    #[schema(min_items = 1)]
    messages: Vec<MessageIn<'a>>,
}

/// More messages than `ingest.batch_max_messages` can allow, and no more than are kept of a batch: what else there is
/// would take many times its size in memory, only to be refused.
const KEPT_MAX: usize = 10_001;

fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<MessageIn<'de>>, D::Error> {
    struct Bounded;

    impl<'de> Visitor<'de> for Bounded {
        type Value = Vec<MessageIn<'de>>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of messages")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut kept = Vec::new();
            while kept.len() < KEPT_MAX {
                match seq.next_element()? {
                    Some(message) => kept.push(message),
                    None => return Ok(kept),
                }
            }
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(kept)
        }
    }

    deserializer.deserialize_seq(Bounded)
}

/// One result a message, in order.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchOut {
    data: Vec<BatchResult>,
}

/// What became of one message of a batch.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchResult {
    /// 202, or the status that the message alone would have been answered with.
    status: u16,
    /// The accepted message.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<MessageOut>,
    /// Why it was not accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorOut>,
}

impl BatchResult {
    fn refused(error: &Error) -> Self {
        Self {
            status: error.status().as_u16(),
            message: None,
            error: Some(ErrorOut {
                code: error.code(),
                detail: error.detail(),
            }),
        }
    }
}

/// Send up to 1,000 messages; each has its own result. Another answer than 202 means that none was accepted.
#[utoipa::path(
    post, path = "/api/v1/app/{app_id}/msg/batch", tag = "Message", operation_id = "v1.message.create-batch",
    params(("app_id" = String, Path), ContentQuery, ("idempotency-key" = Option<String>, Header)),
    request_body = BatchIn<'static>,
    responses((status = 202, body = BatchOut), (status = 404, body = ErrorOut), (status = 413, body = ErrorOut), (status = 422, body = ValidationOut), (status = 429, body = ErrorOut), (status = 503, body = ErrorOut))
)]
pub(crate) async fn create_batch(
    State(api): State<Api>,
    Path(app): Path<String>,
    Query(query): Query<ContentQuery>,
    request: Request,
) -> Result<Response, Error> {
    may_begin(&api)?;
    let (Parts { headers, .. }, body) = request.into_parts();
    let app = app_ref(&app).ok_or_else(Error::not_found)?;
    let body = body::read(&api, &headers, body, api.settings.batch_bytes_max).await?;
    let input: BatchIn<'_> = body::parse(&body.bytes)?;
    let most = api.settings.batch_messages_max;
    if input.messages.is_empty() || input.messages.len() > most {
        let msg = format!("Must be 1 to {most} messages.");
        return Err(Error::unprocessable("batch_size", &["body", "messages"], msg));
    }
    let checked: Vec<Result<Draft, Error>> = (0_u32..)
        .zip(input.messages)
        .map(|(index, message)| draft(&api, index, message, &body.bytes))
        .collect();
    let request = accept::Request {
        app,
        drafts: checked
            .iter()
            .filter_map(|draft| draft.as_ref().ok().cloned())
            .collect(),
        key: IdempotencyKey::from_headers(&headers)?,
        fingerprint: digest(&[b"batch", &body.bytes]),
        traceparent: traceparent(&headers),
        target: Target::Subscribers,
    };
    let verdicts = if request.drafts.is_empty() {
        Vec::new()
    } else {
        accept(&api, request).await?
    };
    let mut verdicts = verdicts.into_iter();
    let result = |checked: Result<Draft, Error>| match checked
        .and_then(|_| verdicts.next().ok_or_else(Error::internal))
    {
        Ok(Verdict::Accepted(message)) => BatchResult {
            status: StatusCode::ACCEPTED.as_u16(),
            message: Some(MessageOut::new(&message, query.wanted())),
            error: None,
        },
        Ok(Verdict::EventIdTaken) => BatchResult::refused(&event_id_taken()),
        Err(error) => BatchResult::refused(&error),
    };
    let data = checked.into_iter().map(result).collect();
    Ok((StatusCode::ACCEPTED, Json(BatchOut { data })).into_response())
}

fn draft(api: &Api, index: u32, message: MessageIn<'_>, body: &bytes::Bytes) -> Result<Draft, Error> {
    if message.application.is_some() {
        return Err(Error::invalid(
            &["body", "application"],
            "Not in a batch; create the application first.",
        ));
    }
    message.into_draft(index, body, api.settings.body_bytes_max)
}

//! Reading request bodies within bounds, and JSON with the place of its first error.
//!
//! Bodies in memory are bounded over all requests: a request reserves what it announces (or the limit of its
//! operation, when it announces nothing) before a byte is read, and gives it back when it is answered.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::header;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use crate::error::{Error, FieldError};
use crate::state::Api;

/// Unit in which memory for bodies is reserved.
pub(crate) const RESERVE_UNIT: usize = 1024;
/// How long a request waits for memory.
const RESERVE_WAIT: Duration = Duration::from_secs(5);

/// A body and the memory that it reserves.
pub(crate) struct ReadBody {
    pub(crate) bytes: Bytes,
    reserved: OwnedSemaphorePermit,
}

/// Reads a body of at most `limit` bytes; 413 above, 503 while too many other bodies are in memory.
pub(crate) async fn read(api: &Api, request: Request, limit: usize) -> Result<ReadBody, Error> {
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(Error::too_large(limit));
    }
    let units = announced.unwrap_or(limit).div_ceil(RESERVE_UNIT).max(1);
    let units = u32::try_from(units).unwrap_or(u32::MAX);
    let reserve = api.body_memory.clone().acquire_many_owned(units);
    let Ok(Ok(reserved)) = tokio::time::timeout(RESERVE_WAIT, reserve).await else {
        return Err(Error::unavailable(
            "overloaded",
            "Too many requests are in progress; try again.",
            Duration::from_secs(1),
        ));
    };
    let bytes = collect(request.into_body(), limit).await?;
    Ok(ReadBody { bytes, reserved })
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, Error> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Error::too_large(limit)),
        Err(_) => Err(Error::bad_request(
            "incomplete_body",
            "The body ended before it was complete.",
        )),
    }
}

/// A JSON body of a configuration request, with its bytes for the idempotency fingerprint. No body means `{}`.
pub(crate) struct JsonBody<T> {
    pub(crate) value: T,
    pub(crate) bytes: Bytes,
    _reserved: OwnedSemaphorePermit,
}

impl<T: DeserializeOwned> FromRequest<Api> for JsonBody<T> {
    type Rejection = Error;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Error> {
        let body = read(api, request, api.settings.body_bytes_max).await?;
        let text: &[u8] = if body.bytes.is_empty() { b"{}" } else { &body.bytes };
        let value = parse(text)?;
        Ok(Self {
            value,
            bytes: body.bytes,
            _reserved: body.reserved,
        })
    }
}

/// Parses JSON; 422 with the path of the value that is wrong, or the line and column where the syntax breaks.
pub(crate) fn parse<'de, T: Deserialize<'de>>(text: &'de [u8]) -> Result<T, Error> {
    // The fast way first: following the path costs time that only bad input should pay.
    match serde_json::from_slice(text) {
        Ok(value) => Ok(value),
        Err(error) => Err(explain::<T>(text, &error)),
    }
}

fn explain<'de, T: Deserialize<'de>>(text: &'de [u8], error: &serde_json::Error) -> Error {
    if !error.is_data() {
        let mut item = FieldError::new(&["body"], format!("Not valid JSON: {error}."));
        item.kind = "value_error.jsondecode";
        return Error::fields(vec![item]);
    }
    let mut loc = vec!["body".to_owned()];
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let message = match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Ok(_) => error.to_string(),
        Err(traced) => {
            for segment in traced.path() {
                let segment = segment.to_string();
                if segment != "?" {
                    loc.push(segment.trim_matches(['[', ']']).to_owned());
                }
            }
            traced.inner().to_string()
        }
    };
    // `missing field `x` at line 1 column 2`: name the field as the place, too.
    let missing = message
        .strip_prefix("missing field `")
        .and_then(|rest| rest.split_once('`'));
    let kind = match missing {
        Some((field, _)) => {
            loc.push(field.to_owned());
            "value_error.missing"
        }
        None => "type_error",
    };
    Error::fields(vec![FieldError {
        loc,
        msg: format!("{message}."),
        kind,
    }])
}

/// For PATCH: an absent field is `None`, `null` is `Some(None)`.
pub(crate) fn nullable<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}

/// For fields that may be absent but not `null`.
pub(crate) fn present<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    T::deserialize(deserializer).map(Some)
}

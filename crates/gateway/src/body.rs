//! Reading request bodies within bounds, and JSON with the place of its first error.
//!
//! Bodies in memory are bounded over all requests: a request reserves what it announces (or the limit of its
//! operation, when it announces nothing) before a byte is read, and gives it back when it is answered.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
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
pub(crate) async fn read(
    api: &Api,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<ReadBody, Error> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(Error::too_large(limit));
    }
    let units = announced.unwrap_or(limit).div_ceil(RESERVE_UNIT).max(1);
    let reserved = reserve(api, u32::try_from(units).unwrap_or(u32::MAX)).await;
    let Some(reserved) = reserved else {
        return Err(Error::unavailable(
            "overloaded",
            "Too many requests are in progress; try again.",
            Duration::from_secs(1),
        ));
    };
    let bytes = collect(body, announced.unwrap_or(0), limit).await?;
    Ok(ReadBody { bytes, reserved })
}

async fn reserve(api: &Api, units: u32) -> Option<OwnedSemaphorePermit> {
    // Mostly there is room, and no need for a timer; boxed, since a request's future should stay small.
    let memory = Arc::clone(&api.body_memory);
    if let Ok(reserved) = memory.try_acquire_many_owned(units) {
        return Some(reserved);
    }
    let waiting = Arc::clone(&api.body_memory).acquire_many_owned(units);
    let waiting = Box::pin(tokio::time::timeout(RESERVE_WAIT, waiting));
    waiting.await.ok()?.ok()
}

/// The body in one piece: as it came when it came in one, which short ones do, else in a buffer of the announced size.
async fn collect(mut body: Body, announced: usize, limit: usize) -> Result<Bytes, Error> {
    let first = next(&mut body).await?.unwrap_or_default();
    if first.len() > limit {
        return Err(Error::too_large(limit));
    }
    let Some(second) = next(&mut body).await? else {
        return Ok(first);
    };
    let mut all = BytesMut::with_capacity(announced.max(first.len()));
    all.extend_from_slice(&first);
    drop(first);
    let mut piece = Some(second);
    while let Some(data) = piece {
        if all.len() + data.len() > limit {
            return Err(Error::too_large(limit));
        }
        all.extend_from_slice(&data);
        piece = next(&mut body).await?;
    }
    // What came unannounced was gathered in a buffer that grew in doubles: kept is what was reserved.
    Ok(if all.capacity() > all.len() {
        Bytes::copy_from_slice(&all)
    } else {
        all.freeze()
    })
}

/// The body's next piece.
async fn next(body: &mut Body) -> Result<Option<Bytes>, Error> {
    loop {
        if body.is_end_stream() {
            return Ok(None);
        }
        match body.frame().await {
            None => return Ok(None),
            // Trailers say nothing that is asked for.
            Some(Ok(frame)) if frame.is_trailers() => {}
            Some(Ok(frame)) => return Ok(frame.into_data().ok()),
            Some(Err(_)) => {
                return Err(Error::bad_request(
                    "incomplete_body",
                    "The body ended before it was complete.",
                ));
            }
        }
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
        let (Parts { headers, .. }, body) = request.into_parts();
        let body = read(api, &headers, body, api.settings.body_bytes_max).await?;
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

/// For what tells them apart: an absent field is `None`, `null` is `Some(None)`.
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

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::stream;
    use http::StatusCode;

    use super::*;

    fn in_pieces(pieces: Vec<Result<&'static str, io::Error>>) -> Body {
        Body::from_stream(stream::iter(pieces))
    }

    #[tokio::test]
    async fn a_body_in_pieces_is_put_together() {
        let whole = async |body, announced| {
            let body = collect(body, announced, 6).await;
            body.unwrap_or_else(|error| panic!("{error:?}"))
        };
        for announced in [0, 6] {
            let pieces = in_pieces(vec![Ok("ab"), Ok(""), Ok("cd"), Ok("ef")]);
            assert_eq!(whole(pieces, announced).await, "abcdef");
        }
        assert_eq!(whole(in_pieces(vec![Ok("abcdef")]), 6).await, "abcdef");
        assert_eq!(whole(Body::empty(), 0).await, "");
    }

    #[tokio::test]
    async fn a_body_above_its_limit_or_cut_off_is_refused() {
        let broken = || Err(io::Error::other("reset"));
        let cases = [
            (vec![Ok("abcdefg")], StatusCode::PAYLOAD_TOO_LARGE),
            (vec![Ok("abcd"), Ok("efg")], StatusCode::PAYLOAD_TOO_LARGE),
            (vec![Ok("ab"), Ok("cd"), Ok("efg")], StatusCode::PAYLOAD_TOO_LARGE),
            (vec![broken()], StatusCode::BAD_REQUEST),
            (vec![Ok("ab"), broken()], StatusCode::BAD_REQUEST),
        ];
        for (pieces, status) in cases {
            let refused = collect(in_pieces(pieces), 0, 6).await;
            assert_eq!(refused.map_err(|error| error.status()).err(), Some(status));
        }
    }
}

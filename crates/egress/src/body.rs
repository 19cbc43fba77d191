//! Reading a response's body: as much as is allowed, keeping as much as is wanted.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use crate::failure::Failure;

/// The beginning of a body.
pub(crate) struct Beginning {
    pub(crate) kept: Bytes,
    pub(crate) truncated: bool,
}

/// Reads a body until its end or until more than `read_max` bytes came, and keeps the first `keep_max`. Dropping
/// what is left closes the connection, so a body without an end costs nothing more.
pub(crate) async fn read(mut body: Incoming, read_max: usize, keep_max: usize) -> Result<Beginning, Failure> {
    if body.is_end_stream() {
        return Ok(Beginning {
            kept: Bytes::new(),
            truncated: false,
        });
    }
    // A copy, since a slice of the connection's read buffer would hold all of that buffer until it is stored.
    let mut kept = BytesMut::new();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::from_exchange(&error))?;
        // Trailers are of no interest.
        let Ok(data) = frame.into_data() else { continue };
        let room = keep_max - kept.len();
        kept.extend_from_slice(&data[..data.len().min(room)]);
        read += data.len();
        if read > read_max {
            break;
        }
    }
    Ok(Beginning {
        truncated: read > kept.len(),
        kept: kept.freeze(),
    })
}

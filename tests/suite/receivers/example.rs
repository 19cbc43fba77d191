//! The Rust example of `docs/receivers.md`: what follows is on that page, to the letter.

use super::App;

use axum::{body::Bytes, extract::State, http::HeaderMap, http::StatusCode};

pub(super) async fn receive(State(app): State<App>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if app.webhook.verify(&body, &headers).is_err() {
        return StatusCode::UNAUTHORIZED;
    }
    let id = headers["webhook-id"].clone();
    match app.queue.send((id, body)).await {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

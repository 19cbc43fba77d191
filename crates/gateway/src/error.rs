//! What the API answers when it cannot do what was asked.
//!
//! One type with one mapping to HTTP. The bodies are those of the open webhook API: `{"code", "detail"}`, for 422
//! `{"detail": [{"loc", "msg", "type"}]}`, for a failure of ours `{}`. An error says what to do about it and, for bad
//! input, where in the request it is.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use postrider_store::StoreError;
use serde::Serialize;
use utoipa::ToSchema;

/// An error answer.
#[derive(Debug)]
pub(crate) struct Error {
    status: StatusCode,
    body: Body,
    retry_after: Option<Duration>,
}

#[derive(Debug)]
enum Body {
    Plain(ErrorOut),
    Fields(ValidationOut),
    Empty,
}

/// Why a request was not done.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = HttpErrorOut)]
pub(crate) struct ErrorOut {
    /// A stable name of the error.
    pub(crate) code: &'static str,
    /// What it means and what to do.
    pub(crate) detail: String,
}

/// What is wrong with the request's input.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = HTTPValidationError)]
pub(crate) struct ValidationOut {
    /// A stable name, for those errors that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<&'static str>,
    /// Every problem that was found.
    pub(crate) detail: Vec<FieldError>,
}

/// One problem with the input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ValidationErrorItem)]
pub(crate) struct FieldError {
    /// The place: `body`, `query`, `path` or `header`, then names and indices.
    pub(crate) loc: Vec<String>,
    /// What is wrong.
    pub(crate) msg: String,
    /// The kind of problem.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
}

impl FieldError {
    pub(crate) fn new(loc: &[&str], msg: impl Into<String>) -> Self {
        Self {
            loc: loc.iter().map(ToString::to_string).collect(),
            msg: msg.into(),
            kind: "value_error",
        }
    }
}

impl Error {
    fn plain(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let body = Body::Plain(ErrorOut {
            code,
            detail: detail.into(),
        });
        Self {
            status,
            body,
            retry_after: None,
        }
    }

    /// 400.
    pub(crate) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::plain(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 401.
    pub(crate) fn unauthenticated() -> Self {
        Self::plain(
            StatusCode::UNAUTHORIZED,
            "authentication_failed",
            "Send a valid API key as `Authorization: Bearer <key>`.",
        )
    }

    /// 403. The code has a blank in it: so it is on the wire.
    pub(crate) fn forbidden() -> Self {
        Self::plain(
            StatusCode::FORBIDDEN,
            "insufficient access",
            "This API key's scope does not allow the operation.",
        )
    }

    /// 404.
    pub(crate) fn not_found() -> Self {
        Self::plain(StatusCode::NOT_FOUND, "not_found", "Entity not found")
    }

    /// 405.
    pub(crate) fn method_not_allowed() -> Self {
        Self::plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "This path has no such method.",
        )
    }

    /// 409.
    pub(crate) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::plain(StatusCode::CONFLICT, code, detail)
    }

    /// 413.
    pub(crate) fn too_large(limit: usize) -> Self {
        Self::plain(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
            format!("The body is larger than {limit} bytes."),
        )
    }

    /// 422 with one problem.
    pub(crate) fn invalid(loc: &[&str], msg: impl Into<String>) -> Self {
        Self::fields(vec![FieldError::new(loc, msg)])
    }

    /// 422 with these problems.
    pub(crate) fn fields(detail: Vec<FieldError>) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            body: Body::Fields(ValidationOut { code: None, detail }),
            retry_after: None,
        }
    }

    /// 422 with a code of its own.
    pub(crate) fn unprocessable(code: &'static str, loc: &[&str], msg: impl Into<String>) -> Self {
        let mut item = FieldError::new(loc, msg);
        item.kind = code;
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            body: Body::Fields(ValidationOut {
                code: Some(code),
                detail: vec![item],
            }),
            retry_after: None,
        }
    }

    /// 429.
    pub(crate) fn too_many_requests(retry_after: Duration) -> Self {
        let detail = "The application sends faster than its rate limit allows; wait as Retry-After says.";
        Self {
            retry_after: Some(retry_after),
            ..Self::plain(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
        }
    }

    /// 500, which says nothing of what went wrong; the log does.
    pub(crate) fn internal() -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            body: Body::Empty,
            retry_after: None,
        }
    }

    /// 501.
    pub(crate) fn not_implemented(detail: &str) -> Self {
        Self::plain(StatusCode::NOT_IMPLEMENTED, "not_implemented", detail)
    }

    /// 503: nothing was done, the same request may succeed later.
    pub(crate) fn unavailable(code: &'static str, detail: &str, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::plain(StatusCode::SERVICE_UNAVAILABLE, code, detail)
        }
    }

    /// The status.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The `code` of the body, `validation_error` for a 422 without one.
    pub(crate) fn code(&self) -> &'static str {
        match &self.body {
            Body::Plain(plain) => plain.code,
            Body::Fields(fields) => fields.code.unwrap_or("validation_error"),
            Body::Empty => "server_error",
        }
    }

    /// The problems as one sentence each, for a batch's results.
    pub(crate) fn detail(&self) -> String {
        match &self.body {
            Body::Plain(plain) => plain.detail.clone(),
            Body::Fields(fields) => {
                let items = fields
                    .detail
                    .iter()
                    .map(|item| format!("{}: {}", item.loc.join("."), item.msg));
                items.collect::<Vec<_>>().join("; ")
            }
            Body::Empty => String::new(),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = match self.body {
            Body::Plain(plain) => (self.status, Json(plain)).into_response(),
            Body::Fields(fields) => (self.status, Json(fields)).into_response(),
            Body::Empty => (self.status, Json(serde_json::json!({}))).into_response(),
        };
        if let Some(wait) = self.retry_after {
            // Whole seconds (RFC 9110, 10.2.3), rounded up: a shorter wait would be refused again.
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            if let Ok(value) = HeaderValue::try_from(seconds.to_string()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
        }
        response
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(source) => {
                tracing::warn!(error = %source, "the store is unreachable");
                Self::unavailable(
                    "store_unavailable",
                    "The store is unreachable; try again.",
                    Duration::from_secs(2),
                )
            }
            StoreError::Slow(source) => {
                tracing::warn!(error = %source, "the store took too long");
                Self::unavailable(
                    "store_slow",
                    "The store took too long for this; ask for less, or try again.",
                    Duration::from_secs(2),
                )
            }
            StoreError::Conflict(what) => Self::conflict(
                "conflict",
                format!("Another entity has this {what} already; choose another one."),
            ),
            StoreError::Changed => Self::unavailable(
                "changed_meanwhile",
                "Others keep changing the same entity; try again.",
                Duration::from_secs(1),
            ),
            error @ (StoreError::Schema { .. } | StoreError::Corrupt(_) | StoreError::Rejected(_)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "the store failed");
                Self::internal()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_store_is_not_called_unreachable() {
        let answers = [
            StoreError::Slow("a limit".into()),
            StoreError::Unavailable("away".into()),
        ]
        .map(Error::from);
        assert_eq!(
            answers.each_ref().map(Error::code),
            ["store_slow", "store_unavailable"]
        );
        let [slow, _] = answers;
        assert!(!slow.detail().contains("unreachable"), "{}", slow.detail());
        let response = slow.into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
    }
}

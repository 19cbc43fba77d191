//! The consumer portal, which does not exist yet: its operations say so.

use http::StatusCode;

use crate::error::{Error, ErrorOut};

const DETAIL: &str = "There is no consumer portal yet. Make an API key with the scope `app:<id>` at \
    /api/v1/auth/key for access to one application.";

/// Get access to the consumer portal: not implemented.
#[utoipa::path(
    post, path = "/api/v1/auth/app-portal-access/{app_id}", tag = "Authentication", operation_id = "v1.authentication.app-portal-access",
    params(("app_id" = String, Path)),
    responses((status = 501, body = ErrorOut))
)]
pub(crate) async fn app_portal_access() -> Result<StatusCode, Error> {
    std::future::ready(Err(Error::not_implemented(DETAIL))).await
}

/// End a portal's session: not implemented.
#[utoipa::path(
    post, path = "/api/v1/auth/logout", tag = "Authentication", operation_id = "logout_api_v1_auth_logout__post",
    responses((status = 501, body = ErrorOut))
)]
pub(crate) async fn logout() -> Result<StatusCode, Error> {
    std::future::ready(Err(Error::not_implemented(DETAIL))).await
}

//! Our own OpenAPI description, generated from the handlers, and its UI, which needs no network.

use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{Method, StatusCode};
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{OpenApi, ToSchema as _};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::api;
use crate::auth::{Need, needed};
use crate::error::ErrorOut;
use crate::state::Api;

struct Bearer;

impl utoipa::Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("HTTPBearer", SecurityScheme::Http(scheme));
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Postrider", description = "Webhooks: events in, signed deliveries out."),
    modifiers(&Bearer),
    security(("HTTPBearer" = []))
)]
struct Description;

/// Every operation with its description.
pub(crate) fn described() -> (Router<Api>, utoipa::openapi::OpenApi) {
    let (router, mut openapi) = OpenApiRouter::with_openapi(Description::openapi())
        .merge(api::routes())
        .split_for_parts();
    for (path, item) in &mut openapi.paths.paths {
        let operations = [
            (Method::GET, &mut item.get),
            (Method::POST, &mut item.post),
            (Method::PUT, &mut item.put),
            (Method::PATCH, &mut item.patch),
            (Method::DELETE, &mut item.delete),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            if needed(&method, path) != Need::Nothing {
                add_common_responses(operation);
            }
            describe_responses(operation);
        }
    }
    (router, openapi)
}

/// What any operation may answer that asks for a key: it stands before all handlers, or is the store's.
fn add_common_responses(operation: &mut Operation) {
    let mut common = vec![
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::SERVICE_UNAVAILABLE,
    ];
    if operation.request_body.is_some() {
        common.push(StatusCode::PAYLOAD_TOO_LARGE);
    }
    for status in common {
        let error = ContentBuilder::new().schema(Some(Ref::from_schema_name(ErrorOut::name())));
        let response = ResponseBuilder::new().content("application/json", error.build());
        operation
            .responses
            .responses
            .entry(status.as_str().to_owned())
            .or_insert_with(|| RefOr::T(response.build()));
    }
}

/// A response must have a description; where there is none to add, the status says it.
fn describe_responses(operation: &mut Operation) {
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response
            && response.description.is_empty()
        {
            let reason = status
                .parse()
                .ok()
                .and_then(|status: StatusCode| status.canonical_reason());
            response.description = reason.unwrap_or("Answer").to_owned();
        }
    }
}

/// The description at `/api/v1/openapi.json`, the UI at `/docs`.
pub(crate) fn pages(openapi: &utoipa::openapi::OpenApi) -> Router<Api> {
    let document = serde_json::to_value(openapi).unwrap_or_default();
    let ui = SwaggerUi::new("/docs").config(utoipa_swagger_ui::Config::from("/api/v1/openapi.json"));
    let serve = move || std::future::ready(document_response(&document));
    Router::new().route("/api/v1/openapi.json", get(serve)).merge(ui)
}

fn document_response(document: &serde_json::Value) -> Response {
    Json(document).into_response()
}

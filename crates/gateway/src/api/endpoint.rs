//! Endpoints: where an application's messages go.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use postrider_model::{
    AppId, Application, Endpoint, EndpointId, EndpointSecret, ExhaustedPolicy, HeaderNames, UnixMillis,
};
use postrider_signature::SigningSecret;
use postrider_store::EndpointRef;
use secrecy::SecretString;

use super::Path;
use super::change::change;
use super::endpoint_in::{EndpointIn, EndpointPatch};
use super::endpoint_out::EndpointOut;
use super::endpoint_room::{Room, Size};
use crate::body::JsonBody;
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::idempotency::digest;
use crate::once::{Makes, Once};
use crate::page::{ListResponse, PageQuery, Query, sentence};
use crate::state::{Api, endpoint_ref};
use crate::validate::Problems;

/// A secret that a caller chose, in its normal form.
pub(crate) fn parse_secret(text: &str, loc: &[&str]) -> Result<SecretString, Error> {
    let secret = SigningSecret::parse(text).map_err(|error| Error::invalid(loc, sentence(&error)))?;
    Ok(secret.to_text())
}

/// A new secret.
pub(crate) fn new_secret() -> SecretString {
    SigningSecret::generate_symmetric(&mut rand::rng()).to_text()
}

pub(super) fn blank(app: AppId, id: EndpointId, secret: SecretString) -> Endpoint {
    Endpoint {
        id,
        app,
        uid: None,
        url: String::new(),
        description: String::new(),
        event_types: Vec::new(),
        channels: Vec::new(),
        disabled: false,
        paused: false,
        throttle_rate: None,
        ordered: false,
        on_exhausted: ExhaustedPolicy::default(),
        header_names: HeaderNames::default(),
        timeout: None,
        retry_schedule: None,
        headers: BTreeMap::new(),
        secrets: vec![EndpointSecret {
            text: secret,
            expires_at: None,
        }],
        metadata: BTreeMap::new(),
        created_at: id.created_at(),
        updated_at: id.created_at(),
    }
}

/// Hold the application's lock: what fits is counted.
async fn create_endpoint(
    api: &Api,
    app: &Application,
    id: EndpointId,
    input: EndpointIn,
) -> Result<Endpoint, Error> {
    let mut problems = Problems::default();
    input.check_lists(&mut problems);
    if let Some(headers) = &input.headers {
        problems.headers(
            headers
                .iter()
                .map(|(name, value)| (name.as_str(), Some(value.as_str()))),
        );
    }
    let secret = match &input.secret {
        Some(text) => parse_secret(text, &["body", "secret"])?,
        None => new_secret(),
    };
    let headers = input.headers.clone().unwrap_or_default();
    let patch = input.into_patch();
    patch.check(api, &mut problems);
    problems.done()?;
    let (most, held) = (api.settings.endpoints_max, api.store.endpoint_use(app.id).await?);
    if held.count >= most {
        let detail = format!("An application has at most {most} endpoints.");
        return Err(Error::bad_request("limit_reached", detail));
    }
    let mut endpoint = blank(app.id, id, secret);
    endpoint.headers = headers
        .into_iter()
        .map(|(name, value)| (name, SecretString::from(value)))
        .collect();
    patch.apply(&mut endpoint);
    Room::left(held.bytes).check(&endpoint, Size::default())?;
    let version = api
        .store
        .create_endpoint(&endpoint)
        .await?
        .ok_or_else(Error::not_found)?;
    api.changed(app.id, version).await;
    Ok(endpoint)
}

/// List an application's endpoints.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/endpoint", tag = "Endpoint", operation_id = "v1.endpoint.list",
    params(("app_id" = String, Path, description = "Id or uid of the application"), PageQuery),
    responses((status = 200, body = ListResponse<EndpointOut>), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<ListResponse<EndpointOut>>, Error> {
    let page = query.page(false)?;
    let app = api.app(&app).await?;
    let endpoints = api.store.endpoints(app.id, &page).await?;
    Ok(Json(query.respond(
        endpoints,
        |endpoint| endpoint.id.to_string(),
        EndpointOut::from,
    )))
}

/// Create an endpoint.
#[utoipa::path(
    post, path = "/api/v1/app/{app_id}/endpoint", tag = "Endpoint", operation_id = "v1.endpoint.create",
    params(("app_id" = String, Path, description = "Id or uid of the application"), ("idempotency-key" = Option<String>, Header)),
    request_body = EndpointIn,
    responses((status = 201, body = EndpointOut), (status = 400, description = "A limit is reached", body = ErrorOut), (status = 404, body = ErrorOut), (status = 409, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn create(
    State(api): State<Api>,
    Path(app): Path<String>,
    headers: HeaderMap,
    body: JsonBody<EndpointIn>,
) -> Result<Response, Error> {
    let app = api.app(&app).await?;
    let fresh = EndpointId::generate(UnixMillis::now(), &mut rand::rng());
    let fingerprint = digest(&[b"endpoint", app.id.as_bytes(), &body.bytes]);
    let makes = Makes::New(*fresh.as_bytes());
    let once = Once::begin(&api, app.id, &headers, fingerprint, makes).await?;
    let lock = api.config_lock(app.id).await;
    let result = create_once(&api, &app, &once, body.value).await;
    drop(lock);
    let endpoint = once.end(&api, result).await?;
    Ok((StatusCode::CREATED, Json(EndpointOut::from(endpoint))).into_response())
}

async fn create_once(
    api: &Api,
    app: &Application,
    once: &Once,
    input: EndpointIn,
) -> Result<Endpoint, Error> {
    let id = EndpointId::from_slice(&once.resource).ok_or_else(Error::internal)?;
    let by_id = EndpointRef::Id(id);
    let find = || api.store.endpoint(app.id, &by_id);
    once.find_or_make(find, create_endpoint(api, app, id, input))
        .await
}

/// Get an endpoint.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}", tag = "Endpoint", operation_id = "v1.endpoint.get",
    params(("app_id" = String, Path, description = "Id or uid of the application"), ("endpoint_id" = String, Path, description = "Id or uid of the endpoint")),
    responses((status = 200, body = EndpointOut), (status = 404, body = ErrorOut))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path((app, endpoint)): Path<(String, String)>,
) -> Result<Json<EndpointOut>, Error> {
    let (_, endpoint) = api.app_endpoint(&app, &endpoint).await?;
    Ok(Json(endpoint.into()))
}

/// Replace an endpoint, or create it when there is none of this uid.
#[utoipa::path(
    put, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}", tag = "Endpoint", operation_id = "v1.endpoint.update",
    params(("app_id" = String, Path, description = "Id or uid of the application"), ("endpoint_id" = String, Path, description = "Id or uid of the endpoint")),
    request_body = EndpointIn,
    responses((status = 200, body = EndpointOut), (status = 201, body = EndpointOut), (status = 400, description = "A limit is reached", body = ErrorOut), (status = 404, body = ErrorOut), (status = 409, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn update(
    State(api): State<Api>,
    Path((app, name)): Path<(String, String)>,
    body: JsonBody<EndpointIn>,
) -> Result<Response, Error> {
    let app = api.app(&app).await?;
    let reference = endpoint_ref(&name).ok_or_else(Error::not_found)?;
    let _lock = api.config_lock(app.id).await;
    let mut input = body.value;
    if api.store.endpoint(app.id, &reference).await?.is_none() {
        // An id cannot be chosen; a uid can.
        let EndpointRef::Uid(uid) = reference else {
            return Err(Error::not_found());
        };
        input.uid = Some(input.uid.flatten().or(Some(uid)));
        let id = EndpointId::generate(UnixMillis::now(), &mut rand::rng());
        let endpoint = create_endpoint(&api, &app, id, input).await?;
        return Ok((StatusCode::CREATED, Json(EndpointOut::from(endpoint))).into_response());
    }
    // So that a repeat finds it again.
    if let EndpointRef::Uid(uid) = &reference {
        input.uid.get_or_insert_with(|| Some(uid.clone()));
    }
    let mut problems = Problems::default();
    input.check_lists(&mut problems);
    let patch = input.into_patch();
    patch.check(&api, &mut problems);
    problems.done()?;
    let endpoint = patch_endpoint(&api, (app.id, reference), &patch).await?;
    Ok(Json(EndpointOut::from(endpoint)).into_response())
}

/// Change fields of an endpoint.
#[utoipa::path(
    patch, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}", tag = "Endpoint", operation_id = "patch_endpoint",
    params(("app_id" = String, Path, description = "Id or uid of the application"), ("endpoint_id" = String, Path, description = "Id or uid of the endpoint")),
    request_body = EndpointPatch,
    responses((status = 200, body = EndpointOut), (status = 400, description = "A limit is reached", body = ErrorOut), (status = 404, body = ErrorOut), (status = 409, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn patch(
    State(api): State<Api>,
    Path((app, name)): Path<(String, String)>,
    body: JsonBody<EndpointPatch>,
) -> Result<Json<EndpointOut>, Error> {
    let app = api.app(&app).await?;
    let reference = endpoint_ref(&name).ok_or_else(Error::not_found)?;
    let mut problems = Problems::default();
    body.value.check(&api, &mut problems);
    problems.done()?;
    let _lock = api.config_lock(app.id).await;
    let endpoint = patch_endpoint(&api, (app.id, reference), &body.value).await?;
    Ok(Json(endpoint.into()))
}

async fn patch_endpoint(
    api: &Api,
    key: (AppId, EndpointRef),
    patch: &EndpointPatch,
) -> Result<Endpoint, Error> {
    let room = Room::of(api, key.0).await?;
    change::<Endpoint>(api, &key, |endpoint| {
        let before = Size::of(endpoint);
        patch.clone().apply(endpoint);
        room.check(endpoint, before)
    })
    .await
}

/// Delete an endpoint; what waits for it is cancelled.
#[utoipa::path(
    delete, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}", tag = "Endpoint", operation_id = "v1.endpoint.delete",
    params(("app_id" = String, Path, description = "Id or uid of the application"), ("endpoint_id" = String, Path, description = "Id or uid of the endpoint")),
    responses((status = 204), (status = 404, body = ErrorOut))
)]
pub(crate) async fn delete(
    State(api): State<Api>,
    Path((app, endpoint)): Path<(String, String)>,
) -> Result<StatusCode, Error> {
    let (app, endpoint) = api.app_endpoint(&app, &endpoint).await?;
    let version = api
        .store
        .delete_endpoint(app.id, endpoint.id, UnixMillis::now())
        .await?;
    api.changed(app.id, version.ok_or_else(Error::not_found)?).await;
    Ok(StatusCode::NO_CONTENT)
}

//! Applications: the tenants.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use postrider_model::{AppId, Application, UnixMillis};
use postrider_store::AppRef;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::Path;
use super::application_in::{ApplicationIn, ApplicationPatch};
use super::change::change;
use crate::body::JsonBody;
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::idempotency::{NO_APP, digest};
use crate::once::{Makes, Once};
use crate::page::{FromParams, ListResponse, PageQuery, Params, Query, show_time};
use crate::state::{Api, app_ref};

/// An application.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ApplicationOut {
    #[schema(value_type = String)]
    id: AppId,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    throttle_rate: Option<u32>,
    propagate_traceparent: bool,
    metadata: BTreeMap<String, String>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
}

/// How to create.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct CreateQuery {
    /// Answer 200 with the application of this uid when there is one.
    #[param(default = false)]
    get_if_exists: Option<bool>,
}

impl FromParams for CreateQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        let get_if_exists = params.flag("get_if_exists")?;
        Ok(Self { get_if_exists })
    }
}

impl From<Application> for ApplicationOut {
    fn from(app: Application) -> Self {
        Self {
            id: app.id,
            uid: app.uid,
            name: app.name,
            throttle_rate: app.throttle_rate,
            propagate_traceparent: app.propagate_traceparent,
            metadata: app.metadata,
            created_at: show_time(app.created_at),
            updated_at: show_time(app.updated_at),
        }
    }
}

/// Makes an application, and makes its version known.
pub(crate) async fn create_app(api: &Api, id: AppId, input: ApplicationIn) -> Result<Application, Error> {
    input.check()?;
    let app = input.into_application(id);
    let created = api.store.create_app(&app).await;
    if let Some(uid) = &app.uid {
        // If it was taken, there is one too.
        api.cache.named(uid);
    }
    api.changed(app.id, created?).await;
    Ok(app)
}

/// List applications.
#[utoipa::path(
    get, path = "/api/v1/app", tag = "Application", operation_id = "v1.application.list", params(PageQuery),
    responses((status = 200, body = ListResponse<ApplicationOut>), (status = 401, body = ErrorOut), (status = 403, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    Query(query): Query<PageQuery>,
) -> Result<Json<ListResponse<ApplicationOut>>, Error> {
    let apps = api.store.apps(&query.page(false)?).await?;
    Ok(Json(query.respond(
        apps,
        |app| app.id.to_string(),
        ApplicationOut::from,
    )))
}

/// Create an application.
#[utoipa::path(
    post, path = "/api/v1/app", tag = "Application", operation_id = "v1.application.create",
    params(CreateQuery, ("idempotency-key" = Option<String>, Header)), request_body = ApplicationIn,
    responses((status = 201, body = ApplicationOut), (status = 200, description = "There was one", body = ApplicationOut), (status = 409, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn create(
    State(api): State<Api>,
    Query(query): Query<CreateQuery>,
    headers: HeaderMap,
    body: JsonBody<ApplicationIn>,
) -> Result<Response, Error> {
    body.value.check()?;
    let get_if_exists = query.get_if_exists.unwrap_or(false);
    if get_if_exists && let Some(found) = by_uid(&api, body.value.uid()).await? {
        return Ok((StatusCode::OK, Json(ApplicationOut::from(found))).into_response());
    }
    let fresh = AppId::generate(UnixMillis::now(), &mut rand::rng());
    let fingerprint = digest(&[b"app", &body.bytes]);
    let makes = Makes::New(*fresh.as_bytes());
    let once = Once::begin(&api, NO_APP, &headers, fingerprint, makes).await?;
    let result = create_once(&api, &once, body.value, get_if_exists).await;
    let (status, app) = once.end(&api, result).await?;
    Ok((status, Json(ApplicationOut::from(app))).into_response())
}

async fn create_once(
    api: &Api,
    once: &Once,
    input: ApplicationIn,
    get_if_exists: bool,
) -> Result<(StatusCode, Application), Error> {
    let id = AppId::from_slice(&once.resource).ok_or_else(Error::internal)?;
    let uid = input.uid().map(str::to_owned);
    let by_id = AppRef::Id(id);
    let created = once.find_or_make(|| api.store.app(&by_id), create_app(api, id, input));
    match created.await {
        // Somebody else made it just now.
        Err(error) if get_if_exists && error.status() == StatusCode::CONFLICT => {
            let found = by_uid(api, uid.as_deref()).await?;
            Ok((StatusCode::OK, found.ok_or(error)?))
        }
        created => Ok((StatusCode::CREATED, created?)),
    }
}

async fn by_uid(api: &Api, uid: Option<&str>) -> Result<Option<Application>, Error> {
    let Some(uid) = uid else { return Ok(None) };
    let found = api.store.app(&AppRef::Uid(uid.to_owned())).await?;
    if found.is_some() {
        api.cache.named(uid);
    }
    Ok(found)
}

/// Get an application.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}", tag = "Application", operation_id = "v1.application.get",
    params(("app_id" = String, Path, description = "Id or uid of the application")),
    responses((status = 200, body = ApplicationOut), (status = 404, body = ErrorOut))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path(app): Path<String>,
) -> Result<Json<ApplicationOut>, Error> {
    Ok(Json(api.app(&app).await?.into()))
}

/// Replace an application, or create it when there is none of this uid.
#[utoipa::path(
    put, path = "/api/v1/app/{app_id}", tag = "Application", operation_id = "v1.application.update",
    params(("app_id" = String, Path, description = "Id or uid of the application")), request_body = ApplicationIn,
    responses((status = 200, body = ApplicationOut), (status = 201, body = ApplicationOut), (status = 409, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn update(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: JsonBody<ApplicationIn>,
) -> Result<Response, Error> {
    let mut input = body.value;
    input.check()?;
    let reference = app_ref(&name).ok_or_else(Error::not_found)?;
    let found = match api.store.app(&reference).await? {
        Some(found) => found,
        None => match create_named(&api, &reference, input.clone()).await {
            Ok(app) => return Ok((StatusCode::CREATED, Json(ApplicationOut::from(app))).into_response()),
            // Somebody else made it just now.
            Err(error) if error.status() == StatusCode::CONFLICT => {
                api.store.app(&reference).await?.ok_or(error)?
            }
            Err(error) => return Err(error),
        },
    };
    // So that a repeat finds it again.
    if let AppRef::Uid(uid) = reference {
        input.uid.get_or_insert(Some(uid));
    }
    let _lock = api.config_lock(found.id).await;
    let app = change::<Application>(&api, &AppRef::Id(found.id), |app| {
        input.clone().replace(app);
        Ok(())
    })
    .await?;
    Ok(Json(ApplicationOut::from(app)).into_response())
}

/// Creates what a `PUT` named and nobody made. An id cannot be chosen; a uid can.
async fn create_named(api: &Api, name: &AppRef, mut input: ApplicationIn) -> Result<Application, Error> {
    let AppRef::Uid(uid) = name else {
        return Err(Error::not_found());
    };
    input.uid = Some(input.uid.flatten().or_else(|| Some(uid.clone())));
    let id = AppId::generate(UnixMillis::now(), &mut rand::rng());
    create_app(api, id, input).await
}

/// Change fields of an application.
#[utoipa::path(
    patch, path = "/api/v1/app/{app_id}", tag = "Application", operation_id = "patch_application",
    params(("app_id" = String, Path, description = "Id or uid of the application")), request_body = ApplicationPatch,
    responses((status = 200, body = ApplicationOut), (status = 404, body = ErrorOut), (status = 409, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn patch(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: JsonBody<ApplicationPatch>,
) -> Result<Json<ApplicationOut>, Error> {
    let id = api.app(&name).await?.id;
    let _lock = api.config_lock(id).await;
    let app = change::<Application>(&api, &AppRef::Id(id), |app| {
        let input = body.value.clone().over(app);
        input.check()?;
        input.replace(app);
        Ok(())
    })
    .await?;
    Ok(Json(app.into()))
}

/// Delete an application with its endpoints; what waits for them is cancelled.
#[utoipa::path(
    delete, path = "/api/v1/app/{app_id}", tag = "Application", operation_id = "v1.application.delete",
    params(("app_id" = String, Path, description = "Id or uid of the application")),
    responses((status = 204), (status = 404, body = ErrorOut))
)]
pub(crate) async fn delete(State(api): State<Api>, Path(app): Path<String>) -> Result<StatusCode, Error> {
    let id = api.app(&app).await?.id;
    let version = api.store.delete_app(id, UnixMillis::now()).await?;
    api.changed(id, version.ok_or_else(Error::not_found)?).await;
    Ok(StatusCode::NO_CONTENT)
}

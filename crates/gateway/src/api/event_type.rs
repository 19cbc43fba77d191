//! Event types: the catalogue of what applications publish.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use postrider_model::{EventType, EventTypeId, UnixMillis};
use postrider_store::StoreError;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::Path;
use super::change::change;
use super::event_type_in::{EventTypeIn, EventTypePatch, EventTypeUpdate};
use crate::body::JsonBody;
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::idempotency::{NO_APP, digest};
use crate::once::{Makes, Once};
use crate::page::{FromParams, ListResponse, PageQuery, Params, Query, show_time};
use crate::state::Api;

/// An event type.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventTypeOut {
    name: String,
    description: String,
    archived: bool,
    deprecated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_flag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_flags: Option<Vec<String>>,
    #[schema(value_type = Option<Object>)]
    schemas: Option<Box<RawValue>>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
}

/// Which event types.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventTypeQuery {
    /// Archived ones too.
    #[param(default = false)]
    include_archived: Option<bool>,
    /// With their schemas.
    #[param(default = false)]
    with_content: Option<bool>,
}

/// How to delete.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeleteQuery {
    /// Remove it rather than archive it.
    #[param(default = false)]
    expunge: Option<bool>,
}

impl FromParams for EventTypeQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        Ok(Self {
            include_archived: params.flag("include_archived")?,
            with_content: params.flag("with_content")?,
        })
    }
}

impl FromParams for DeleteQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        let expunge = params.flag("expunge")?;
        Ok(Self { expunge })
    }
}

impl EventTypeOut {
    fn new(event_type: EventType, with_content: bool) -> Self {
        let schemas = event_type.schemas.filter(|_| with_content);
        Self {
            name: event_type.name,
            description: event_type.description,
            archived: event_type.archived,
            deprecated: event_type.deprecated,
            feature_flags: event_type.feature_flag.clone().map(|flag| vec![flag]),
            feature_flag: event_type.feature_flag,
            schemas: schemas.and_then(|text| RawValue::from_string(text).ok()),
            created_at: show_time(event_type.created_at),
            updated_at: show_time(event_type.updated_at),
        }
    }
}

/// List event types.
#[utoipa::path(
    get, path = "/api/v1/event-type", tag = "Event type", operation_id = "v1.event-type.list",
    params(PageQuery, EventTypeQuery),
    responses((status = 200, body = ListResponse<EventTypeOut>), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    Query(page): Query<PageQuery>,
    Query(query): Query<EventTypeQuery>,
) -> Result<Json<ListResponse<EventTypeOut>>, Error> {
    let archived = query.include_archived.unwrap_or(false);
    let content = query.with_content.unwrap_or(false);
    let found = api.store.event_types(&page.page(false)?, archived).await?;
    let show = |event_type| EventTypeOut::new(event_type, content);
    Ok(Json(page.respond(
        found,
        |event_type| event_type.name.clone(),
        show,
    )))
}

/// Create an event type.
#[utoipa::path(
    post, path = "/api/v1/event-type", tag = "Event type", operation_id = "v1.event-type.create",
    params(("idempotency-key" = Option<String>, Header)), request_body = EventTypeIn,
    responses((status = 201, body = EventTypeOut), (status = 409, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn create(
    State(api): State<Api>,
    headers: HeaderMap,
    body: JsonBody<EventTypeIn>,
) -> Result<Response, Error> {
    let fresh = EventTypeId::generate(UnixMillis::now(), &mut rand::rng());
    let fingerprint = digest(&[b"event-type", &body.bytes]);
    let makes = Makes::New(*fresh.as_bytes());
    let once = Once::begin(&api, NO_APP, &headers, fingerprint, makes).await?;
    let result = create_once(&api, &once, body.value).await;
    let event_type = once.end(&api, result).await?;
    Ok((StatusCode::CREATED, Json(EventTypeOut::new(event_type, true))).into_response())
}

async fn create_once(api: &Api, once: &Once, input: EventTypeIn) -> Result<EventType, Error> {
    let id = EventTypeId::from_slice(&once.resource).ok_or_else(Error::internal)?;
    let event_type = input.into_event_type(id)?;
    let find = || async {
        let found = api.store.event_type(&event_type.name).await;
        found.map(|found| found.filter(|found| found.id == id))
    };
    let create = async {
        match api.store.create_event_type(&event_type).await {
            Err(StoreError::Conflict(_)) => Err(Error::conflict(
                "event_type_exists",
                "An event type of this name exists; update it instead.",
            )),
            other => Ok(other.map(|()| event_type.clone())?),
        }
    };
    once.find_or_make(find, create).await
}

async fn find(api: &Api, name: &str) -> Result<EventType, Error> {
    api.store.event_type(name).await?.ok_or_else(Error::not_found)
}

/// Get an event type.
#[utoipa::path(
    get, path = "/api/v1/event-type/{event_type_name}", tag = "Event type", operation_id = "v1.event-type.get",
    params(("event_type_name" = String, Path)),
    responses((status = 200, body = EventTypeOut), (status = 404, body = ErrorOut))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<EventTypeOut>, Error> {
    Ok(Json(EventTypeOut::new(find(&api, &name).await?, true)))
}

/// Replace an event type, or create it when there is none of this name.
#[utoipa::path(
    put, path = "/api/v1/event-type/{event_type_name}", tag = "Event type", operation_id = "v1.event-type.update",
    params(("event_type_name" = String, Path)), request_body = EventTypeUpdate,
    responses((status = 200, body = EventTypeOut), (status = 201, body = EventTypeOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn update(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: JsonBody<EventTypeUpdate>,
) -> Result<Response, Error> {
    let id = EventTypeId::generate(UnixMillis::now(), &mut rand::rng());
    let event_type = body.value.into_event_type(id, name)?;
    let created = api.store.put_event_type(&event_type).await?;
    let status = if created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let stored = find(&api, &event_type.name).await?;
    Ok((status, Json(EventTypeOut::new(stored, true))).into_response())
}

/// Change fields of an event type.
#[utoipa::path(
    patch, path = "/api/v1/event-type/{event_type_name}", tag = "Event type", operation_id = "patch_event_type",
    params(("event_type_name" = String, Path)), request_body = EventTypePatch,
    responses((status = 200, body = EventTypeOut), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn patch(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: JsonBody<EventTypePatch>,
) -> Result<Json<EventTypeOut>, Error> {
    let _lock = api.config_lock(NO_APP).await;
    let event_type = change::<EventType>(&api, &name, |event_type| body.value.apply(event_type)).await?;
    Ok(Json(EventTypeOut::new(event_type, true)))
}

/// Archive an event type, or remove it.
#[utoipa::path(
    delete, path = "/api/v1/event-type/{event_type_name}", tag = "Event type", operation_id = "v1.event-type.delete",
    params(("event_type_name" = String, Path), DeleteQuery),
    responses((status = 204), (status = 404, body = ErrorOut))
)]
pub(crate) async fn delete(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<StatusCode, Error> {
    let expunge = query.expunge.unwrap_or(false);
    let deleted = api
        .store
        .delete_event_type(&name, expunge, UnixMillis::now())
        .await?;
    if deleted {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Error::not_found())
    }
}

//! API keys. A key is shown once, when it is made.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use postrider_model::{AppId, KeyId, UnixMillis};
use postrider_secrets::{ApiKey, Scope};
use postrider_store::{AppRef, NewKey, StoredKey};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Path;
use crate::body::JsonBody;
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::page::{ListResponse, PageQuery, Query, sentence, show_time};
use crate::state::Api;
use crate::validate::Problems;

/// A key to make.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ApiKeyIn {
    /// `admin`, `ingest` or `app:<application id>`.
    scope: String,
    /// For people.
    #[serde(default)]
    name: String,
}

/// A key.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ApiKeyOut {
    #[schema(value_type = String)]
    id: KeyId,
    scope: String,
    name: String,
    #[schema(format = DateTime)]
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    revoked_at: Option<String>,
    /// The key itself: only in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl ApiKeyOut {
    fn new(stored: StoredKey, key: Option<&ApiKey>) -> Self {
        Self {
            id: stored.key.id,
            scope: stored.key.scope,
            name: stored.key.name,
            created_at: show_time(stored.key.created_at),
            revoked_at: stored.revoked_at.map(show_time),
            key: key.map(|key| key.expose().to_owned()),
        }
    }
}

/// List API keys, newest first, revoked ones included.
#[utoipa::path(
    get, path = "/api/v1/auth/key", tag = "Authentication", operation_id = "v1.authentication.list-keys",
    params(PageQuery),
    responses((status = 200, body = ListResponse<ApiKeyOut>), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    Query(query): Query<PageQuery>,
) -> Result<Json<ListResponse<ApiKeyOut>>, Error> {
    let page = query.page(true)?;
    let keys = api.store.keys(&page).await?;
    Ok(Json(query.respond(
        keys,
        |key| key.key.id.to_string(),
        |key| ApiKeyOut::new(key, None),
    )))
}

/// Make an API key. An `Idempotency-Key` has no effect: the key is not kept, so it could not be shown again.
#[utoipa::path(
    post, path = "/api/v1/auth/key", tag = "Authentication", operation_id = "v1.authentication.create-key",
    request_body = ApiKeyIn,
    responses((status = 201, body = ApiKeyOut), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn create(State(api): State<Api>, body: JsonBody<ApiKeyIn>) -> Result<Response, Error> {
    let mut problems = Problems::default();
    problems.text(&["body", "name"], &body.value.name, 0);
    problems.done()?;
    let bad_scope = |detail: String| Error::invalid(&["body", "scope"], detail);
    let scope: Scope = body
        .value
        .scope
        .parse()
        .map_err(|error| bad_scope(sentence(&error)))?;
    if let Scope::App(id) = &scope {
        let id: AppId = id.parse().map_err(|error| bad_scope(sentence(&error)))?;
        api.store
            .app(&AppRef::Id(id))
            .await?
            .ok_or_else(Error::not_found)?;
    }
    let now = UnixMillis::now();
    let key = ApiKey::generate().map_err(|error| {
        tracing::error!(%error, "no randomness for an API key");
        Error::internal()
    })?;
    let new = NewKey {
        id: KeyId::generate(now, &mut rand::rng()),
        hash: key.hash().0,
        scope: scope.to_string(),
        name: body.value.name,
        created_at: now,
    };
    api.store.create_key(&new).await?;
    let stored = StoredKey {
        key: new,
        revoked_at: None,
    };
    Ok((StatusCode::CREATED, Json(ApiKeyOut::new(stored, Some(&key)))).into_response())
}

/// Revoke an API key: at once in this process, within 10 s in the others.
#[utoipa::path(
    delete, path = "/api/v1/auth/key/{key_id}", tag = "Authentication", operation_id = "v1.authentication.revoke-key",
    params(("key_id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorOut))
)]
pub(crate) async fn revoke(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode, Error> {
    let id: KeyId = id.parse().map_err(|_| Error::not_found())?;
    if !api.store.revoke_key(id, UnixMillis::now()).await? {
        return Err(Error::not_found());
    }
    api.auth.forget();
    Ok(StatusCode::NO_CONTENT)
}

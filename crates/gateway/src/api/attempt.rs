//! Attempts: what was tried, and what came of it.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use postrider_model::{AppId, AttemptId, EndpointId, Message, MessageId};
use postrider_store::{AttemptFilter, Part};

use super::Path;
use super::attempt_out::MessageAttemptOut;
use super::delivery_query::{AttemptQuery, EndpointQuery, StatusQuery};
use super::message::find;
use super::message_out::MessageOut;
use super::message_query::{ContentQuery, MessageQuery};
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::page::{FromParams, ListResponse, PageQuery, Params, Query};
use crate::state::Api;

/// Which attempts of an application, and how they are shown.
pub(crate) struct Asked {
    page: PageQuery,
    messages: MessageQuery,
    status: StatusQuery,
    attempt: AttemptQuery,
    content: ContentQuery,
}

impl FromParams for Asked {
    fn from_params(params: &Params) -> Result<Self, Error> {
        Ok(Self {
            page: PageQuery::from_params(params)?,
            messages: MessageQuery::from_params(params)?,
            status: StatusQuery::from_params(params)?,
            attempt: AttemptQuery::from_params(params)?,
            content: ContentQuery::from_params(params)?,
        })
    }
}

/// Whose attempts.
struct Of {
    endpoint: Option<EndpointId>,
    message: Option<Message>,
}

async fn list(api: &Api, app: AppId, of: Of, asked: Asked) -> Result<ListResponse<MessageAttemptOut>, Error> {
    let store_page = asked.page.page(true)?;
    let success = asked.status.attempts();
    let filter = AttemptFilter {
        endpoint: of.endpoint,
        message: of.message.as_ref().map(|message| message.id),
        success: success.flatten(),
        status_class: asked.attempt.status_code_class.map(|class| class / 100),
        range: asked.messages.range(),
        event_types: asked.messages.event_types,
        channel: asked.messages.channel,
    };
    let part = match success {
        Some(_) => api.store.attempts(app, &filter, &store_page).await?,
        None => Part::whole(Vec::new()),
    };
    let mut list = asked.page.respond_part(
        part,
        |row| row.attempt.id,
        |row| MessageAttemptOut::new(row, asked.content.wanted()),
    );
    if asked.attempt.with_msg.unwrap_or(false) {
        for attempt in &mut list.data {
            let message = match &of.message {
                Some(message) => Some(message.clone()),
                None => {
                    let found = api.store.message(app, attempt.msg_id, false).await?;
                    found.map(|row| row.message)
                }
            };
            attempt.msg = message.map(|message| MessageOut::new(&message, false));
        }
    }
    Ok(list)
}

/// List attempts to an endpoint, newest first.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/attempt/endpoint/{endpoint_id}", tag = "Message attempt", operation_id = "v1.message-attempt.list-by-endpoint",
    params(("app_id" = String, Path), ("endpoint_id" = String, Path), PageQuery, MessageQuery, StatusQuery, AttemptQuery, ContentQuery),
    responses((status = 200, body = ListResponse<MessageAttemptOut>), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list_by_endpoint(
    State(api): State<Api>,
    Path((app, endpoint)): Path<(String, String)>,
    Query(asked): Query<Asked>,
) -> Result<Json<ListResponse<MessageAttemptOut>>, Error> {
    let (app, endpoint) = api.app_endpoint(&app, &endpoint).await?;
    let of = Of {
        endpoint: Some(endpoint.id),
        message: None,
    };
    Ok(Json(list(&api, app.id, of, asked).await?))
}

/// List attempts to deliver a message, newest first.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/attempt/msg/{msg_id}", tag = "Message attempt", operation_id = "v1.message-attempt.list-by-msg",
    params(("app_id" = String, Path), ("msg_id" = String, Path), PageQuery, MessageQuery, StatusQuery, AttemptQuery, ContentQuery, EndpointQuery),
    responses((status = 200, body = ListResponse<MessageAttemptOut>), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn list_by_msg(
    State(api): State<Api>,
    Path((app, message)): Path<(String, String)>,
    Query(asked): Query<Asked>,
    Query(to): Query<EndpointQuery>,
) -> Result<Json<ListResponse<MessageAttemptOut>>, Error> {
    let app = api.app(&app).await?;
    let message = find(&api, app.id, &message, false).await?.message;
    let endpoint = match to.endpoint_id {
        Some(name) => Some(api.endpoint(app.id, &name).await?.id),
        None => None,
    };
    let of = Of {
        endpoint,
        message: Some(message),
    };
    Ok(Json(list(&api, app.id, of, asked).await?))
}

/// Get an attempt.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/msg/{msg_id}/attempt/{attempt_id}", tag = "Message attempt", operation_id = "v1.message-attempt.get",
    params(("app_id" = String, Path), ("msg_id" = String, Path), ("attempt_id" = String, Path)),
    responses((status = 200, body = MessageAttemptOut), (status = 404, body = ErrorOut))
)]
pub(crate) async fn get(
    State(api): State<Api>,
    Path((app, message, attempt)): Path<(String, String, String)>,
) -> Result<Json<MessageAttemptOut>, Error> {
    let (app, message, id) = locate(&api, &app, &message, &attempt).await?;
    let found = api.store.attempt(app, message, id).await?;
    Ok(Json(MessageAttemptOut::new(
        found.ok_or_else(Error::not_found)?,
        true,
    )))
}

/// The ids that the path's three parameters stand for.
async fn locate(
    api: &Api,
    app: &str,
    message: &str,
    attempt: &str,
) -> Result<(AppId, MessageId, AttemptId), Error> {
    let id = attempt.parse().map_err(|_| Error::not_found())?;
    let app = api.app(app).await?.id;
    let message = find(api, app, message, false).await?.message.id;
    Ok((app, message, id))
}

/// Remove an attempt's response.
#[utoipa::path(
    delete, path = "/api/v1/app/{app_id}/msg/{msg_id}/attempt/{attempt_id}/content", tag = "Message attempt", operation_id = "v1.message-attempt.expunge-content",
    params(("app_id" = String, Path), ("msg_id" = String, Path), ("attempt_id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorOut))
)]
pub(crate) async fn expunge_content(
    State(api): State<Api>,
    Path((app, message, attempt)): Path<(String, String, String)>,
) -> Result<StatusCode, Error> {
    let (app, message, id) = locate(&api, &app, &message, &attempt).await?;
    if api.store.expunge_attempt(app, message, id).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Error::not_found())
    }
}

//! Endpoints: where an application's messages go.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use postrider_model::{
    AppId, Application, Endpoint, EndpointId, EndpointSecret, ExhaustedPolicy, HeaderNames, RetrySchedule,
    UnixMillis,
};
use postrider_signature::SigningSecret;
use postrider_store::{AppRef, EndpointRef};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

use super::Path;
use crate::body::{JsonBody, nullable, present};
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::idempotency::{Once, digest};
use crate::page::{ListResponse, PageQuery, Query, sentence, show_time};
use crate::state::{Api, change_time, endpoint_ref};
use crate::validate::Problems;

/// Most channels of an endpoint.
const CHANNELS_MAX: usize = 10;

/// What happens to an `ordered` endpoint when the delivery at its head is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnExhausted {
    /// The next delivery goes on.
    Skip,
    /// The endpoint is paused.
    Pause,
}

/// Which header names a delivery carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HeaderStyle {
    /// `webhook-id`, `webhook-timestamp`, `webhook-signature`.
    Standard,
    /// `svix-id`, `svix-timestamp`, `svix-signature`.
    Svix,
}

/// An endpoint to make, or to replace: then `secret` and `headers` are left as they are, and so are those of our own
/// fields that are absent (`paused` to `retrySchedule`).
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointIn {
    /// Where to POST.
    #[schema(format = "uri", min_length = 1)]
    url: String,
    /// Your own name for it, unique within the application.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[a-zA-Z0-9\-_.]+$")]
    uid: Option<String>,
    /// For people.
    description: Option<String>,
    /// Takes no messages.
    disabled: Option<bool>,
    /// Event types that it wants; all when absent.
    #[schema(min_items = 1)]
    event_types: Option<Vec<String>>,
    /// Channels that it listens to; all when absent.
    #[schema(min_items = 1, max_items = 10)]
    channels: Option<Vec<String>>,
    /// Deliveries a second at most.
    #[schema(minimum = 1, maximum = 65535)]
    throttle_rate: Option<u32>,
    /// Notes of yours.
    metadata: Option<BTreeMap<String, String>>,
    /// Signing secret, `whsec_` or `whsk_`; made up when absent.
    secret: Option<String>,
    /// Extra headers of its deliveries.
    headers: Option<BTreeMap<String, String>>,
    /// Takes messages, which wait until it is resumed.
    paused: Option<bool>,
    /// First in, first out.
    ordered: Option<bool>,
    /// For `ordered` endpoints.
    on_exhausted: Option<OnExhausted>,
    /// Header names of its deliveries.
    header_names: Option<HeaderStyle>,
    /// Deadline of one attempt.
    #[schema(minimum = 1, maximum = 30)]
    timeout_seconds: Option<u64>,
    /// Seconds to wait after the first, second, … failed attempt.
    #[schema(max_items = 20)]
    retry_schedule: Option<Vec<u64>>,
}

/// What to change of an endpoint.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointPatch {
    #[serde(default, deserialize_with = "present")]
    url: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    uid: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    description: Option<String>,
    #[serde(default, deserialize_with = "present")]
    disabled: Option<bool>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Vec<String>>)]
    event_types: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Vec<String>>)]
    channels: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>)]
    throttle_rate: Option<Option<u32>>,
    #[serde(default, deserialize_with = "present")]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "present")]
    paused: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    ordered: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    on_exhausted: Option<OnExhausted>,
    #[serde(default, deserialize_with = "present")]
    header_names: Option<HeaderStyle>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>)]
    timeout_seconds: Option<Option<u64>>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Vec<u64>>)]
    retry_schedule: Option<Option<Vec<u64>>>,
}

/// An endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointOut {
    #[schema(value_type = String)]
    id: EndpointId,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    url: String,
    description: String,
    disabled: bool,
    event_types: Option<Vec<String>>,
    channels: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    throttle_rate: Option<u32>,
    metadata: BTreeMap<String, String>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
    paused: bool,
    ordered: bool,
    on_exhausted: OnExhausted,
    header_names: HeaderStyle,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_schedule: Option<Vec<u64>>,
}

impl From<Endpoint> for EndpointOut {
    fn from(endpoint: Endpoint) -> Self {
        let seconds = |schedule: RetrySchedule| schedule.delays().iter().map(Duration::as_secs).collect();
        Self {
            id: endpoint.id,
            uid: endpoint.uid,
            url: endpoint.url,
            description: endpoint.description,
            disabled: endpoint.disabled,
            event_types: non_empty(endpoint.event_types),
            channels: non_empty(endpoint.channels),
            throttle_rate: endpoint.throttle_rate,
            metadata: endpoint.metadata,
            created_at: show_time(endpoint.created_at),
            updated_at: show_time(endpoint.updated_at),
            paused: endpoint.paused,
            ordered: endpoint.ordered,
            on_exhausted: match endpoint.on_exhausted {
                ExhaustedPolicy::Skip => OnExhausted::Skip,
                ExhaustedPolicy::Pause => OnExhausted::Pause,
            },
            header_names: match endpoint.header_names {
                HeaderNames::Standard => HeaderStyle::Standard,
                HeaderNames::Svix => HeaderStyle::Svix,
            },
            timeout_seconds: endpoint.timeout.map(|timeout| timeout.as_secs()),
            retry_schedule: endpoint.retry_schedule.map(seconds),
        }
    }
}

/// The wire has no empty lists here: absent means all.
pub(crate) fn non_empty(list: Vec<String>) -> Option<Vec<String>> {
    (!list.is_empty()).then_some(list)
}

impl EndpointIn {
    /// Replacing is patching every field of the open API; absent ones get their defaults.
    fn into_patch(self) -> EndpointPatch {
        EndpointPatch {
            url: Some(self.url),
            uid: Some(self.uid),
            description: Some(self.description.unwrap_or_default()),
            disabled: Some(self.disabled.unwrap_or(false)),
            event_types: Some(self.event_types),
            channels: Some(self.channels),
            throttle_rate: Some(self.throttle_rate),
            metadata: Some(self.metadata.unwrap_or_default()),
            paused: self.paused,
            ordered: self.ordered,
            on_exhausted: self.on_exhausted,
            header_names: self.header_names,
            timeout_seconds: self.timeout_seconds.map(Some),
            retry_schedule: self.retry_schedule.map(Some),
        }
    }

    /// What PATCH does not have: lists that are there must not be empty.
    fn check_lists(&self, problems: &mut Problems) {
        for (name, list) in [("eventTypes", &self.event_types), ("channels", &self.channels)] {
            let ok = list.as_ref().is_none_or(|list| !list.is_empty());
            problems.check(
                ok,
                &["body", name],
                "Must not be empty; leave it out to mean all.",
            );
        }
    }
}

impl EndpointPatch {
    fn check(&self, api: &Api, problems: &mut Problems) {
        if let Some(url) = &self.url {
            check_url(api, url, problems);
        }
        problems.uid(
            &["body", "uid"],
            self.uid.as_ref().and_then(Option::as_deref),
            EndpointId::PREFIX,
        );
        if let Some(description) = &self.description {
            problems.text(&["body", "description"], description, 0);
        }
        let list = |list: &Option<Option<Vec<String>>>| list.clone().flatten();
        problems.event_types(&["body", "eventTypes"], list(&self.event_types).as_deref());
        problems.channels(
            &["body", "channels"],
            list(&self.channels).as_deref(),
            CHANNELS_MAX,
        );
        problems.rate(&["body", "throttleRate"], self.throttle_rate.flatten());
        if let Some(metadata) = &self.metadata {
            problems.metadata(&["body", "metadata"], metadata);
        }
        let timeout = self.timeout_seconds.flatten();
        let timeout_ok = timeout.is_none_or(|seconds| (1..=30).contains(&seconds));
        problems.check(
            timeout_ok,
            &["body", "timeoutSeconds"],
            "Must be 1 to 30 seconds.",
        );
        if let Some(Err(error)) = self.retry_schedule.clone().flatten().map(schedule) {
            problems.add(&["body", "retrySchedule"], sentence(&error));
        }
    }

    /// The endpoint with these changes, which were checked.
    fn apply(self, endpoint: &mut Endpoint) {
        fn set<T>(target: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *target = value;
            }
        }
        let listed =
            |list: Option<Option<Vec<String>>>| list.map(|list| deduplicated(list.unwrap_or_default()));
        set(&mut endpoint.url, self.url);
        set(&mut endpoint.uid, self.uid);
        set(&mut endpoint.description, self.description);
        set(&mut endpoint.disabled, self.disabled);
        set(&mut endpoint.event_types, listed(self.event_types));
        set(&mut endpoint.channels, listed(self.channels));
        set(&mut endpoint.throttle_rate, self.throttle_rate);
        set(&mut endpoint.metadata, self.metadata);
        set(&mut endpoint.paused, self.paused);
        set(&mut endpoint.ordered, self.ordered);
        let on_exhausted = self.on_exhausted.map(|policy| match policy {
            OnExhausted::Skip => ExhaustedPolicy::Skip,
            OnExhausted::Pause => ExhaustedPolicy::Pause,
        });
        set(&mut endpoint.on_exhausted, on_exhausted);
        let header_names = self.header_names.map(|names| match names {
            HeaderStyle::Standard => HeaderNames::Standard,
            HeaderStyle::Svix => HeaderNames::Svix,
        });
        set(&mut endpoint.header_names, header_names);
        set(
            &mut endpoint.timeout,
            self.timeout_seconds
                .map(|seconds| seconds.map(Duration::from_secs)),
        );
        let schedule = self
            .retry_schedule
            .map(|delays| delays.and_then(|delays| schedule(delays).ok()));
        set(&mut endpoint.retry_schedule, schedule);
    }
}

fn schedule(seconds: Vec<u64>) -> Result<RetrySchedule, postrider_model::retry::ScheduleError> {
    RetrySchedule::try_new(seconds.into_iter().map(Duration::from_secs).collect())
}

fn deduplicated(mut list: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
    list
}

fn check_url(api: &Api, text: &str, problems: &mut Problems) {
    let loc = ["body", "url"];
    match Url::parse(text) {
        Err(error) => problems.add(&loc, format!("Not a URL: {error}.")),
        Ok(url) => {
            if let Err(reason) = api.policy.check_url(&url) {
                problems.add(&loc, sentence(&reason));
            }
        }
    }
}

/// A secret that a caller chose, in its normal form.
pub(crate) fn parse_secret(text: &str, loc: &[&str]) -> Result<SecretString, Error> {
    let secret = SigningSecret::parse(text).map_err(|error| Error::invalid(loc, sentence(&error)))?;
    Ok(secret.to_text())
}

/// A new secret.
pub(crate) fn new_secret() -> SecretString {
    SigningSecret::generate_symmetric(&mut rand::rng()).to_text()
}

fn blank(app: AppId, id: EndpointId, secret: SecretString) -> Endpoint {
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
    let cached = api.cache.peek(&AppRef::Id(app.id));
    if cached.is_some_and(|entry| entry.snapshot.endpoints.len() >= api.settings.endpoints_max) {
        let detail = format!(
            "An application has at most {} endpoints.",
            api.settings.endpoints_max
        );
        return Err(Error::bad_request("limit_reached", detail));
    }
    let mut endpoint = blank(app.id, id, secret);
    endpoint.headers = headers
        .into_iter()
        .map(|(name, value)| (name, SecretString::from(value)))
        .collect();
    patch.apply(&mut endpoint);
    let version = api
        .store
        .create_endpoint(&endpoint)
        .await?
        .ok_or_else(Error::not_found)?;
    api.changed(app.id, version).await;
    Ok(endpoint)
}

/// Writes a changed endpoint back.
pub(crate) async fn write(api: &Api, mut endpoint: Endpoint) -> Result<Endpoint, Error> {
    endpoint.updated_at = change_time(endpoint.updated_at);
    let version = api
        .store
        .update_endpoint(&endpoint)
        .await?
        .ok_or_else(Error::not_found)?;
    api.changed(endpoint.app, version).await;
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
    responses((status = 201, body = EndpointOut), (status = 404, body = ErrorOut), (status = 409, body = ErrorOut), (status = 422, body = ValidationOut))
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
    let once = Once::begin(&api, app.id, &headers, fingerprint, *fresh.as_bytes()).await?;
    let result = create_once(&api, &app, &once, body.value).await;
    let endpoint = once.end(&api, result)?;
    Ok((StatusCode::CREATED, Json(EndpointOut::from(endpoint))).into_response())
}

async fn create_once(
    api: &Api,
    app: &Application,
    once: &Once,
    input: EndpointIn,
) -> Result<Endpoint, Error> {
    let id = EndpointId::from_slice(&once.resource).ok_or_else(Error::internal)?;
    if once.earlier
        && let Some(endpoint) = api.store.endpoint(app.id, &EndpointRef::Id(id)).await?
    {
        return Ok(endpoint);
    }
    create_endpoint(api, app, id, input).await
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
    responses((status = 200, body = EndpointOut), (status = 201, body = EndpointOut), (status = 404, body = ErrorOut), (status = 409, body = ErrorOut), (status = 422, body = ValidationOut))
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
    let Some(mut endpoint) = api.store.endpoint(app.id, &reference).await? else {
        let EndpointRef::Uid(uid) = reference else {
            return Err(Error::not_found());
        };
        input.uid.get_or_insert(uid);
        let id = EndpointId::generate(UnixMillis::now(), &mut rand::rng());
        let endpoint = create_endpoint(&api, &app, id, input).await?;
        return Ok((StatusCode::CREATED, Json(EndpointOut::from(endpoint))).into_response());
    };
    let mut problems = Problems::default();
    input.check_lists(&mut problems);
    let patch = input.into_patch();
    patch.check(&api, &mut problems);
    problems.done()?;
    patch.apply(&mut endpoint);
    Ok(Json(EndpointOut::from(write(&api, endpoint).await?)).into_response())
}

/// Change fields of an endpoint.
#[utoipa::path(
    patch, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}", tag = "Endpoint", operation_id = "patch_endpoint",
    params(("app_id" = String, Path, description = "Id or uid of the application"), ("endpoint_id" = String, Path, description = "Id or uid of the endpoint")),
    request_body = EndpointPatch,
    responses((status = 200, body = EndpointOut), (status = 404, body = ErrorOut), (status = 409, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn patch(
    State(api): State<Api>,
    Path((app, name)): Path<(String, String)>,
    body: JsonBody<EndpointPatch>,
) -> Result<Json<EndpointOut>, Error> {
    let app = api.app(&app).await?;
    let _lock = api.config_lock(app.id).await;
    let mut endpoint = api.endpoint(app.id, &name).await?;
    let mut problems = Problems::default();
    body.value.check(&api, &mut problems);
    problems.done()?;
    body.value.apply(&mut endpoint);
    Ok(Json(write(&api, endpoint).await?.into()))
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

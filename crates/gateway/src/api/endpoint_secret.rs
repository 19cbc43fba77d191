//! An endpoint's signing secret and its extra headers.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, StatusCode};
use postrider_model::{Endpoint, EndpointSecret, UnixMillis};
use postrider_signature::KEYS_MAX;
use postrider_store::EndpointRef;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Path;
use super::change::change;
use super::endpoint::{new_secret, parse_secret};
use super::endpoint_room::{Room, Size};
use crate::body::JsonBody;
use crate::error::{Error, ErrorOut, ValidationOut};
use crate::goes_on::GoesOn;
use crate::idempotency::digest;
use crate::once::{Makes, Once};
use crate::state::{Api, endpoint_ref};
use crate::validate::{Problems, is_sensitive};

/// How long an old secret goes on signing, unless asked otherwise, and at most.
const GRACE_DEFAULT_S: u64 = 24 * 3600;
const GRACE_MAX_S: u64 = 7 * 24 * 3600;

/// An endpoint's signing secret.
#[derive(Serialize, ToSchema)]
pub(crate) struct EndpointSecretOut {
    key: String,
}

/// How to rotate.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointSecretRotateIn {
    /// The new secret; made up when absent.
    key: Option<String>,
    /// How long the old secret goes on signing beside the new one.
    #[schema(default = 86400, maximum = 604800)]
    grace_period_seconds: Option<u64>,
}

/// Extra headers of an endpoint's deliveries.
#[derive(Deserialize, ToSchema)]
pub(crate) struct EndpointHeadersIn {
    headers: BTreeMap<String, String>,
}

/// Headers to set, or with `null` to remove.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointHeadersPatchIn {
    headers: BTreeMap<String, Option<String>>,
    /// Headers to remove.
    #[serde(default)]
    delete_headers: Vec<String>,
}

/// Extra headers; those that may be credentials by name only.
#[derive(Serialize, ToSchema)]
pub(crate) struct EndpointHeadersOut {
    headers: BTreeMap<String, String>,
    sensitive: Vec<String>,
}

/// Get an endpoint's signing secret.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}/secret", tag = "Endpoint", operation_id = "v1.endpoint.get-secret",
    params(("app_id" = String, Path), ("endpoint_id" = String, Path)),
    responses((status = 200, body = EndpointSecretOut), (status = 404, body = ErrorOut))
)]
pub(crate) async fn get_secret(
    State(api): State<Api>,
    Path((app, endpoint)): Path<(String, String)>,
) -> Result<Json<EndpointSecretOut>, Error> {
    let (_, endpoint) = api.app_endpoint(&app, &endpoint).await?;
    secret_out(&endpoint)
}

fn secret_out(endpoint: &Endpoint) -> Result<Json<EndpointSecretOut>, Error> {
    let secret = endpoint.secrets.first().ok_or_else(Error::not_found)?;
    let key = secret.text.expose_secret().to_owned();
    Ok(Json(EndpointSecretOut { key }))
}

/// Replace an endpoint's signing secret; the old one goes on signing for a while. Answers with the new one.
#[utoipa::path(
    post, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}/secret/rotate", tag = "Endpoint", operation_id = "v1.endpoint.rotate-secret",
    params(("app_id" = String, Path), ("endpoint_id" = String, Path), ("idempotency-key" = Option<String>, Header)),
    request_body = EndpointSecretRotateIn,
    responses((status = 200, body = EndpointSecretOut), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn rotate(
    State(api): State<Api>,
    Path((app, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: JsonBody<EndpointSecretRotateIn>,
) -> Result<Json<EndpointSecretOut>, Error> {
    let (app, endpoint) = api.app_endpoint(&app, &name).await?;
    let grace = body.value.grace_period_seconds.unwrap_or(GRACE_DEFAULT_S);
    if grace > GRACE_MAX_S {
        return Err(Error::invalid(
            &["body", "gracePeriodSeconds"],
            "Must be at most 604800 (7 days).",
        ));
    }
    let secret = match &body.value.key {
        Some(key) => parse_secret(key, &["body", "key"])?,
        None => new_secret(),
    };
    let fingerprint = digest(&[b"rotate", endpoint.id.as_bytes(), &body.bytes]);
    let once = Once::begin(&api, app.id, &headers, fingerprint, Makes::Change).await?;
    let key = (app.id, EndpointRef::Id(endpoint.id));
    if once.is_done() {
        // Read again: it was read before the first request was done.
        let endpoint = api.store.endpoint(key.0, &key.1).await?;
        return secret_out(&endpoint.ok_or_else(Error::not_found)?);
    }
    // A client that hangs up amid this, and repeats its request, must not rotate again.
    let owner = api.clone();
    let rotated = GoesOn::new(&api.tasks, async move {
        let lock = owner.config_lock(app.id).await;
        let result = change::<Endpoint>(&owner, &key, |endpoint| {
            let grace = Duration::from_secs(grace);
            rotate_in(&mut endpoint.secrets, secret.clone(), grace, UnixMillis::now());
            Ok(())
        })
        .await;
        drop(lock);
        once.end(&owner, result).await
    });
    secret_out(&rotated.await?)
}

/// Puts the new secret first and lets the others end after the grace period at the latest.
fn rotate_in(secrets: &mut Vec<EndpointSecret>, new: SecretString, grace: Duration, now: UnixMillis) {
    let end = now.plus(grace);
    for secret in &mut *secrets {
        secret.expires_at = Some(secret.expires_at.map_or(end, |at| at.min(end)));
    }
    // A secret that is put in again must not sign twice.
    secrets.retain(|secret| {
        secret.expires_at.is_some_and(|at| at > now) && secret.text.expose_secret() != new.expose_secret()
    });
    secrets.insert(
        0,
        EndpointSecret {
            text: new,
            expires_at: None,
        },
    );
    secrets.truncate(KEYS_MAX);
}

/// Get an endpoint's extra headers.
#[utoipa::path(
    get, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}/headers", tag = "Endpoint", operation_id = "v1.endpoint.get-headers",
    params(("app_id" = String, Path), ("endpoint_id" = String, Path)),
    responses((status = 200, body = EndpointHeadersOut), (status = 404, body = ErrorOut))
)]
pub(crate) async fn get_headers(
    State(api): State<Api>,
    Path((app, endpoint)): Path<(String, String)>,
) -> Result<Json<EndpointHeadersOut>, Error> {
    let (_, endpoint) = api.app_endpoint(&app, &endpoint).await?;
    let (hidden, shown): (Vec<_>, Vec<_>) = endpoint
        .headers
        .into_iter()
        .partition(|(name, _)| is_sensitive(name));
    let shown = shown
        .into_iter()
        .map(|(name, value)| (name, value.expose_secret().to_owned()));
    Ok(Json(EndpointHeadersOut {
        headers: shown.collect(),
        sensitive: hidden.into_iter().map(|(name, _)| name).collect(),
    }))
}

/// Replace an endpoint's extra headers.
#[utoipa::path(
    put, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}/headers", tag = "Endpoint", operation_id = "v1.endpoint.update-headers",
    params(("app_id" = String, Path), ("endpoint_id" = String, Path)), request_body = EndpointHeadersIn,
    responses((status = 204), (status = 400, description = "A limit is reached", body = ErrorOut), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn update_headers(
    State(api): State<Api>,
    Path((app, name)): Path<(String, String)>,
    body: JsonBody<EndpointHeadersIn>,
) -> Result<StatusCode, Error> {
    let changes = body
        .value
        .headers
        .into_iter()
        .map(|(name, value)| (name, Some(value)))
        .collect();
    change_headers(&api, &app, &name, changes, true).await
}

/// Set and remove extra headers of an endpoint.
#[utoipa::path(
    patch, path = "/api/v1/app/{app_id}/endpoint/{endpoint_id}/headers", tag = "Endpoint", operation_id = "v1.endpoint.patch-headers",
    params(("app_id" = String, Path), ("endpoint_id" = String, Path)), request_body = EndpointHeadersPatchIn,
    responses((status = 204), (status = 400, description = "A limit is reached", body = ErrorOut), (status = 404, body = ErrorOut), (status = 422, body = ValidationOut))
)]
pub(crate) async fn patch_headers(
    State(api): State<Api>,
    Path((app, name)): Path<(String, String)>,
    body: JsonBody<EndpointHeadersPatchIn>,
) -> Result<StatusCode, Error> {
    let mut changes = body.value.headers;
    changes.extend(body.value.delete_headers.into_iter().map(|name| (name, None)));
    change_headers(&api, &app, &name, changes, false).await
}

async fn change_headers(
    api: &Api,
    app: &str,
    name: &str,
    changes: BTreeMap<String, Option<String>>,
    replace: bool,
) -> Result<StatusCode, Error> {
    let app = api.app(app).await?;
    let reference = endpoint_ref(name).ok_or_else(Error::not_found)?;
    let _lock = api.config_lock(app.id).await;
    let room = Room::of(api, app.id).await?;
    change::<Endpoint>(api, &(app.id, reference), |endpoint| {
        let before = Size::of(endpoint);
        if replace {
            endpoint.headers.clear();
        }
        change_in(&mut endpoint.headers, &changes)?;
        room.check(endpoint, before)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn change_in(
    headers: &mut BTreeMap<String, SecretString>,
    changes: &BTreeMap<String, Option<String>>,
) -> Result<(), Error> {
    for (name, value) in changes {
        // Names are case-insensitive (RFC 9110, 5.1), so a header replaces one that is spelled differently.
        headers.retain(|known, _| !known.eq_ignore_ascii_case(name));
        if let Some(value) = value {
            headers.insert(name.clone(), SecretString::from(value.as_str()));
        }
    }
    let mut problems = Problems::default();
    problems.headers(
        headers
            .iter()
            .map(|(name, value)| (name.as_str(), Some(value.expose_secret()))),
    );
    problems.done()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretString {
        SecretString::from(text.to_owned())
    }

    #[test]
    fn old_secrets_sign_on_for_their_grace_and_no_more_than_ten_of_them() {
        let mut secrets = Vec::new();
        for n in 0..20 {
            rotate_in(
                &mut secrets,
                secret(&format!("s{n}")),
                Duration::from_secs(100),
                UnixMillis(n * 1000),
            );
        }
        assert_eq!(secrets.len(), KEYS_MAX);
        assert_eq!(secrets[0].text.expose_secret(), "s19");
        assert_eq!(secrets[0].expires_at, None);
        assert_eq!(secrets[1].expires_at, Some(UnixMillis(119_000)));
    }

    #[test]
    fn a_later_rotation_does_not_lengthen_an_old_grace_and_drops_what_ended() {
        let mut secrets = Vec::new();
        rotate_in(&mut secrets, secret("a"), Duration::ZERO, UnixMillis(0));
        rotate_in(&mut secrets, secret("b"), Duration::from_secs(1), UnixMillis(0));
        rotate_in(&mut secrets, secret("c"), Duration::from_secs(9), UnixMillis(500));
        assert_eq!(secrets[2].expires_at, Some(UnixMillis(1000)));
        rotate_in(&mut secrets, secret("d"), Duration::ZERO, UnixMillis(2000));
        assert_eq!(secrets.len(), 1);
    }
}

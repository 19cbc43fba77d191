//! Applications and their endpoints.

use anyhow::{Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{Method, StatusCode};
use serde_json::json;

use crate::generate::plan::{EVENT_TYPES, event_type};
use crate::http_client::Http;

/// Requests at a time.
const CONCURRENT: usize = 16;
/// Deliveries a second that a limited endpoint may get: more than any of them does, so that the limit is decided for each
/// one and holds none back.
const RATE: u32 = 50_000;

/// Who gets messages, and where.
#[derive(Clone, Debug)]
pub(crate) struct Tenants {
    pub(crate) apps: usize,
    /// Of each application.
    pub(crate) endpoints: usize,
    /// Whether the endpoints of an application subscribe to one event type each (10 at most) or all to the first.
    pub(crate) one_type_each: bool,
    /// Whether endpoints have a rate limit, which stops nothing.
    pub(crate) limited: bool,
}

/// What was made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made {
    pub(crate) apps: Vec<String>,
    /// Application and endpoint.
    pub(crate) endpoints: Vec<(String, String)>,
}

impl Tenants {
    /// One application with one endpoint.
    pub(crate) const ONE: Self = Self {
        apps: 1,
        endpoints: 1,
        one_type_each: false,
        limited: true,
    };

    /// Endpoints in all.
    pub(crate) fn count(&self) -> usize {
        self.apps * self.endpoints
    }

    /// Endpoints that each message goes to.
    pub(crate) fn fan_out(&self) -> u64 {
        let endpoints = if self.one_type_each { 1 } else { self.endpoints };
        u64::try_from(endpoints).unwrap_or(u64::MAX)
    }

    /// Makes them through the management API; `url` is asked for the address of each endpoint by its number.
    pub(crate) async fn make(&self, http: &Http, url: impl Fn(usize) -> String) -> Result<Made> {
        ensure!(
            !self.one_type_each || self.endpoints <= EVENT_TYPES,
            "there are {EVENT_TYPES} event types"
        );
        for index in 0..EVENT_TYPES {
            let body = json!({"name": event_type(index), "description": "made by the bench"}).to_string();
            let (status, text) = http
                .exchange(Method::POST, "/api/v1/event-type", Some(body.into()))
                .await?;
            let known = status == StatusCode::CONFLICT;
            ensure!(
                status.is_success() || known,
                "event type: {status}: {}",
                String::from_utf8_lossy(&text)
            );
        }
        let url = &url;
        let apps = stream::iter(0..self.apps)
            .map(|app| self.make_app(http, app, url))
            .buffered(CONCURRENT);
        let apps: Vec<(String, Vec<String>)> = apps.try_collect().await?;
        let mut made = Made::default();
        for (app, endpoints) in apps {
            made.endpoints
                .extend(endpoints.into_iter().map(|endpoint| (app.clone(), endpoint)));
            made.apps.push(app);
        }
        Ok(made)
    }

    async fn make_app(
        &self,
        http: &Http,
        app: usize,
        url: &impl Fn(usize) -> String,
    ) -> Result<(String, Vec<String>)> {
        let id = http
            .create("/api/v1/app", &json!({"name": format!("bench {app}")}))
            .await?;
        let mut endpoints = Vec::with_capacity(self.endpoints);
        for index in 0..self.endpoints {
            let kind = event_type(if self.one_type_each { index } else { 0 });
            let number = app * self.endpoints + index;
            let rate = self.limited.then_some(RATE);
            let body = json!({"url": url(number), "eventTypes": [kind], "throttleRate": rate});
            endpoints.push(http.create(&format!("/api/v1/app/{id}/endpoint"), &body).await?);
        }
        Ok((id, endpoints))
    }
}

//! The HTTP API, as tests use it: thin, and every failure says what the server answered.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postrider_testkit::wait::{Poll, wait_for};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::stack::SOON;

/// A client of one gateway.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    client: reqwest::Client,
    base: String,
    key: String,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<String>,
    pub(crate) body: Value,
}

impl Api {
    pub(crate) fn new(base: &str, key: &str) -> Self {
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(30))
            // Less than the gateway's, as for any client that cannot repeat what meets a connection that ends.
            .pool_idle_timeout(Duration::from_secs(30))
            .no_proxy()
            .build()
            .expect("a client can be made");
        Self {
            client,
            base: base.to_owned(),
            key: key.to_owned(),
        }
    }

    /// The gateway's base URL.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// One request; an error only when there is no answer.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        self.call_with(method, path, body, &[]).await
    }

    /// One request with headers.
    pub(crate) async fn call_with(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        let mut request = self
            .client
            .request(method, format!("{}/api/v1{path}", self.base))
            .bearer_auth(&self.key);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request
            .send()
            .await
            .with_context(|| format!("no answer to {path}"))?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let bytes = response.bytes().await?;
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).unwrap_or_default()
        };
        Ok(Answer {
            status,
            retry_after,
            body,
        })
    }

    async fn ok(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self.call(method.clone(), path, body).await?;
        ensure!(
            answer.status.is_success(),
            "{method} {path}: {} {}",
            answer.status,
            answer.body
        );
        Ok(answer.body)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.ok(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.ok(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Result<Value> {
        self.ok(Method::PATCH, path, Some(body)).await
    }

    /// A new application's id.
    pub(crate) async fn app(&self) -> Result<String> {
        id_of(&self.post("/app", &json!({"name": "test"})).await?)
    }

    /// A new endpoint's id.
    pub(crate) async fn endpoint(&self, app: &str, url: &str) -> Result<String> {
        self.endpoint_with(app, json!({"url": url})).await
    }

    /// A new endpoint's id.
    pub(crate) async fn endpoint_with(&self, app: &str, body: Value) -> Result<String> {
        id_of(&self.post(&format!("/app/{app}/endpoint"), &body).await?)
    }

    /// Sends a message and returns its id once it is accepted.
    pub(crate) async fn send(&self, app: &str, payload: Value) -> Result<String> {
        id_of(
            &self
                .post(
                    &format!("/app/{app}/msg"),
                    &json!({"eventType": "test.event", "payload": payload}),
                )
                .await?,
        )
    }

    /// Sends many messages in one request and returns their ids once all are accepted.
    pub(crate) async fn batch(&self, app: &str, payloads: &[Value]) -> Result<Vec<String>> {
        let messages: Vec<Value> = payloads
            .iter()
            .map(|payload| json!({"eventType": "test.event", "payload": payload}))
            .collect();
        let body = self
            .post(&format!("/app/{app}/msg/batch"), &json!({"messages": messages}))
            .await?;
        let results = body["data"].as_array().context("no results")?;
        results.iter().map(|result| id_of(&result["message"])).collect()
    }

    /// Sends bytes with a content type of their own.
    pub(crate) async fn raw(
        &self,
        app: &str,
        event_type: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Answer> {
        let url = format!("{}/api/v1/app/{app}/msg/raw?eventType={event_type}", self.base);
        let request = self
            .client
            .post(url)
            .bearer_auth(&self.key)
            .header("content-type", content_type)
            .body(body);
        let response = request.send().await?;
        let status = response.status();
        let body = serde_json::from_slice(&response.bytes().await?).unwrap_or_default();
        Ok(Answer {
            status,
            retry_after: None,
            body,
        })
    }

    /// Sends a message until it is accepted, under one idempotency key; gives up after the time.
    pub(crate) async fn send_until_accepted(
        &self,
        app: &str,
        payload: &Value,
        key: &str,
        limit: Duration,
    ) -> Result<String> {
        let body = json!({"eventType": "test.event", "payload": payload});
        let path = format!("/app/{app}/msg");
        wait_for("a message to be accepted", limit, async || {
            let headers = [("idempotency-key", key)];
            match self.call_with(Method::POST, &path, Some(&body), &headers).await {
                Ok(answer) if answer.status == StatusCode::ACCEPTED => Ok(Poll::Ready(id_of(&answer.body)?)),
                Ok(answer) => {
                    ensure!(
                        answer.status.is_server_error() || answer.status == StatusCode::TOO_MANY_REQUESTS,
                        "refused for good: {} {}",
                        answer.status,
                        answer.body
                    );
                    Ok(Poll::NotYet(format!("{} {}", answer.status, answer.body)))
                }
                Err(error) => Ok(Poll::NotYet(format!("{error:#}"))),
            }
        })
        .await
    }

    /// Waits until the deliveries of a message are all in this state (its `statusText`).
    pub(crate) async fn wait_status(&self, app: &str, message: &str, status: &str) -> Result<()> {
        wait_for(&format!("{message} to be {status}"), SOON, async || {
            let answer = self
                .call(Method::GET, &format!("/app/{app}/msg/{message}/endpoint"), None)
                .await?;
            let found: Vec<&str> = answer.body["data"]
                .as_array()
                .map(|rows| rows.iter().filter_map(|row| row["statusText"].as_str()).collect())
                .unwrap_or_default();
            let all = !found.is_empty() && found.iter().all(|found| *found == status);
            Ok(if all {
                Poll::Ready(())
            } else {
                Poll::NotYet(format!("{} {}", answer.status, answer.body))
            })
        })
        .await
    }

    /// The attempts of a message at an endpoint, newest first, once so many are recorded.
    pub(crate) async fn wait_attempts(
        &self,
        app: &str,
        message: &str,
        endpoint: &str,
        least: usize,
    ) -> Result<Vec<Value>> {
        let path = format!("/app/{app}/attempt/msg/{message}?endpoint_id={endpoint}");
        wait_for(&format!("{least} attempts"), SOON, async || {
            let answer = self.call(Method::GET, &path, None).await?;
            Ok(match answer.body["data"].as_array() {
                Some(attempts) if attempts.len() >= least => Poll::Ready(attempts.clone()),
                _ => Poll::NotYet(format!("{} {}", answer.status, answer.body)),
            })
        })
        .await
    }
}

/// The `id` of a body.
pub(crate) fn id_of(body: &Value) -> Result<String> {
    Ok(body["id"]
        .as_str()
        .with_context(|| format!("no id in {body}"))?
        .to_owned())
}

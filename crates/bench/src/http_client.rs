//! A small HTTP client for what the bench itself asks: the receiver's control paths and the management API.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);
/// Servers close what is idle for longer, perhaps while it is taken again.
const IDLE: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(crate) struct Http {
    client: Arc<Client<HttpConnector, Full<Bytes>>>,
    base: String,
    key: Option<String>,
}

impl Http {
    /// Asks at `base` (`http://host:port`), with an API key if there is one.
    pub(crate) fn new(base: String, key: Option<String>) -> Self {
        Self {
            client: Arc::new(
                Client::builder(TokioExecutor::new())
                    .pool_idle_timeout(IDLE)
                    .pool_timer(TokioTimer::new())
                    .build_http(),
            ),
            base,
            key,
        }
    }

    /// One exchange, with a JSON body if there is one; the status and the body, whatever they are.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        path: &str,
        json: Option<Bytes>,
    ) -> Result<(StatusCode, Bytes)> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if json.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(json.unwrap_or_default()))?;
        let exchange = async {
            let response = self.client.request(request).await?;
            let status = response.status();
            anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        timeout(LIMIT, exchange)
            .await
            .with_context(|| format!("no answer to {path} within {LIMIT:?}"))?
    }

    /// Asks; anything but 2xx is an error that quotes the answer.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes> {
        let json = body.map(serde_json::to_vec).transpose()?.map(Bytes::from);
        let (status, bytes) = self.exchange(method, path, json).await?;
        ensure!(
            status.is_success(),
            "{path}: {status}: {}",
            String::from_utf8_lossy(&bytes)
        );
        Ok(bytes)
    }

    /// POSTs and returns the `id` of what was made.
    pub(crate) async fn create(&self, path: &str, body: &Value) -> Result<String> {
        let answer: Value = serde_json::from_slice(&self.ask(Method::POST, path, Some(body)).await?)?;
        let id = answer.get("id").and_then(Value::as_str);
        Ok(id
            .with_context(|| format!("{path} answered without an id"))?
            .to_owned())
    }
}

//! Consume, POST, ack.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::{Semaphore, mpsc};

use super::frame::{Item, decode};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    broker: String,
    #[arg(long)]
    queue: String,
    /// Where to POST to; `/` and the endpoint's number are added.
    #[arg(long)]
    url: String,
    #[arg(long, default_value_t = 1_000)]
    prefetch: u16,
    /// Requests at a time.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
}

struct Worker {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    permits: Semaphore,
}

/// Delivers until killed, or until a delivery fails: the floor tries nothing again.
pub(crate) async fn run(options: Options) -> Result<()> {
    let (_connection, channel) = super::open(&options.broker, &options.queue).await?;
    channel
        .basic_qos(options.prefetch, BasicQosOptions::default())
        .await?;
    let mut consumer = channel
        .basic_consume(
            options.queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .context("cannot consume")?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let worker = Arc::new(Worker {
        client: Client::builder(TokioExecutor::new()).build(connector),
        url: options.url,
        permits: Semaphore::new(options.in_flight),
    });
    let (failed, mut failure) = mpsc::channel(1);
    loop {
        let delivery = tokio::select! {
            biased;
            Some(error) = failure.recv() => return Err(error),
            delivery = consumer.next() => delivery,
        };
        let Some(delivery) = delivery.transpose()? else {
            return Ok(());
        };
        let (worker, failed) = (Arc::clone(&worker), failed.clone());
        tokio::spawn(async move {
            if let Err(error) = worker.deliver(delivery).await {
                // The first one ends the process.
                let _ = failed.try_send(error);
            }
        });
    }
}

impl Worker {
    async fn deliver(self: Arc<Self>, delivery: Delivery) -> Result<()> {
        let items = decode(delivery.data.into());
        let results = join_all(items.into_iter().map(|item| self.post(item))).await;
        results.into_iter().collect::<Result<Vec<()>>>()?;
        delivery.acker.ack(BasicAckOptions::default()).await?;
        Ok(())
    }

    async fn post(&self, item: Item) -> Result<()> {
        let _permit = self.permits.acquire().await?;
        let request = Request::post(format!("{}/{}", self.url, item.endpoint))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(item.body))?;
        let response = self.client.request(request).await?;
        ensure!(
            response.status().is_success(),
            "the receiver answered {}",
            response.status()
        );
        response.into_body().collect().await?;
        Ok(())
    }
}

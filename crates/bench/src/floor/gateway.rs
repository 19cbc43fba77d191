//! HTTP in, one confirmed publish for each message (or for each batch of them), 202 out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::frame::{Item, encode};

/// Longest body that is taken.
const BODY_MAX: usize = 2 * 1024 * 1024;
/// How long a batch that is not full waits for more.
const LINGER: Duration = Duration::from_millis(2);
/// Messages that may wait for a batch.
const GATHER_MAX: usize = 4_096;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    broker: String,
    #[arg(long)]
    queue: String,
    /// Messages in a broker message.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Endpoints, taken in turn.
    #[arg(long, default_value_t = 1)]
    endpoints: u16,
    /// Endpoints that each message goes to.
    #[arg(long, default_value_t = 1)]
    fan_out: u16,
}

struct Gateway {
    channel: Channel,
    queue: String,
    gather: Option<mpsc::Sender<(Item, oneshot::Sender<bool>)>>,
    next_endpoint: AtomicU64,
    endpoints: u16,
    fan_out: u16,
}

/// Serves until killed.
pub(crate) async fn run(options: Options) -> Result<()> {
    let (_connection, channel) = super::open(&options.broker, &options.queue).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let gather = (options.batch > 1).then(|| {
        let (sender, receiver) = mpsc::channel(GATHER_MAX);
        tokio::spawn(batches(
            channel.clone(),
            options.queue.clone(),
            options.batch,
            receiver,
        ));
        sender
    });
    let gateway = Arc::new(Gateway {
        channel,
        queue: options.queue,
        gather,
        next_endpoint: AtomicU64::new(0),
        endpoints: options.endpoints.max(1),
        fan_out: options.fan_out.max(1),
    });
    let listener = TcpListener::bind(options.listen).await.context("cannot listen")?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let gateway = Arc::clone(&gateway);
        let service = service_fn(move |request| Arc::clone(&gateway).accept(request));
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

impl Gateway {
    async fn accept(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let Ok(body) = Limited::new(request.into_body(), BODY_MAX).collect().await else {
            return Ok(answer(StatusCode::PAYLOAD_TOO_LARGE));
        };
        let body = body.to_bytes();
        let first = self
            .next_endpoint
            .fetch_add(self.fan_out.into(), Ordering::Relaxed);
        let items = (0..u64::from(self.fan_out)).map(|offset| Item {
            endpoint: u16::try_from((first + offset) % u64::from(self.endpoints)).unwrap_or_default(),
            body: body.clone(),
        });
        let stored = match &self.gather {
            None => self.publish_each(items).await.is_ok(),
            Some(gather) => hand_over(gather, items).await,
        };
        Ok(answer(if stored {
            StatusCode::ACCEPTED
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        }))
    }

    /// All are on their way before the first confirm is awaited.
    async fn publish_each(&self, items: impl Iterator<Item = Item>) -> Result<()> {
        let mut confirms = Vec::new();
        for item in items {
            confirms.push(publish(&self.channel, &self.queue, &encode(&[item])).await?);
        }
        for confirm in confirms {
            ensure!(matches!(confirm.await?, Confirmation::Ack(None)), "not confirmed");
        }
        Ok(())
    }
}

async fn hand_over(
    gather: &mpsc::Sender<(Item, oneshot::Sender<bool>)>,
    items: impl Iterator<Item = Item>,
) -> bool {
    let mut waits = Vec::new();
    for item in items {
        let (done, wait) = oneshot::channel();
        if gather.send((item, done)).await.is_err() {
            return false;
        }
        waits.push(wait);
    }
    let mut stored = true;
    for wait in waits {
        stored &= wait.await.unwrap_or(false);
    }
    stored
}

/// Publishes full batches, and others after [`LINGER`]; several may be unconfirmed.
async fn batches(
    channel: Channel,
    queue: String,
    most: usize,
    mut receiver: mpsc::Receiver<(Item, oneshot::Sender<bool>)>,
) {
    while let Some(first) = receiver.recv().await {
        let deadline = Instant::now() + LINGER;
        let mut batch = vec![first];
        while batch.len() < most {
            match timeout_at(deadline, receiver.recv()).await {
                Ok(Some(next)) => batch.push(next),
                Ok(None) | Err(_) => break,
            }
        }
        let (items, waiting): (Vec<Item>, Vec<_>) = batch.into_iter().unzip();
        let published = publish(&channel, &queue, &encode(&items)).await;
        tokio::spawn(async move {
            let stored = match published {
                Ok(confirm) => matches!(confirm.await, Ok(Confirmation::Ack(None))),
                Err(_) => false,
            };
            for done in waiting {
                // The client may have gone.
                let _ = done.send(stored);
            }
        });
    }
}

async fn publish(channel: &Channel, queue: &str, frame: &[u8]) -> lapin::Result<lapin::PublisherConfirm> {
    let properties = BasicProperties::default().with_delivery_mode(2);
    channel
        .basic_publish(
            "".into(),
            queue.into(),
            BasicPublishOptions::default(),
            frame,
            properties,
        )
        .await
}

fn answer(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = status;
    response
}

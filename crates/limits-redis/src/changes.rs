//! The subscription to changed configurations: a connection of its own, made anew for ever.
//!
//! What was published while it was away is lost, so after each reconnection receivers get [`EVERY_APP`]. In a cluster
//! any node tells what was published on another.

use std::time::Duration;

use futures_util::StreamExt;
use postrider_limits::EVERY_APP;
use postrider_model::AppId;
use redis::{Client, ConnectionInfo, RedisResult};
use tokio::sync::{broadcast, oneshot};
use tokio::time::{sleep, timeout};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// After this long without a message the server is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Tells `changes` of every application that is published on `channel`; `subscribed` when that begins.
pub(crate) async fn follow(
    nodes: Vec<ConnectionInfo>,
    channel: String,
    changes: broadcast::Sender<AppId>,
    subscribed: oneshot::Sender<()>,
) {
    let mut subscribed = Some(subscribed);
    let mut pause = PAUSE_MIN;
    for node in nodes.iter().cycle() {
        let began = || {
            pause = PAUSE_MIN;
            if let Some(first) = subscribed.take() {
                // The one who waited may have gone on without.
                let _ = first.send(());
            } else {
                tell(&changes, EVERY_APP);
            }
        };
        if let Err(error) = listen(node, &channel, &changes, began).await {
            tracing::warn!(%error, "limits: the subscription to changed configurations ended, trying again");
        }
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn listen(
    node: &ConnectionInfo,
    channel: &str,
    changes: &broadcast::Sender<AppId>,
    began: impl FnOnce(),
) -> RedisResult<()> {
    let client = Client::open(node.clone())?;
    let connect = async {
        let mut connection = client.get_async_pubsub().await?;
        connection.subscribe(channel).await?;
        RedisResult::Ok(connection)
    };
    let (mut sink, mut messages) = within(connect).await?.split();
    began();
    loop {
        match timeout(SILENCE, messages.next()).await {
            Ok(Some(message)) => {
                let payload = message.get_payload_bytes();
                match std::str::from_utf8(payload)
                    .ok()
                    .and_then(|text| text.parse().ok())
                {
                    Some(app) => tell(changes, app),
                    None => {
                        tracing::warn!("limits: a message on the channel of changes is not an application");
                    }
                }
            }
            Ok(None) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            Err(_) => within(sink.ping::<redis::Value>()).await.map(drop)?,
        }
    }
}

async fn within<T>(call: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    timeout(CONNECT_TIMEOUT, call)
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}

fn tell(changes: &broadcast::Sender<AppId>, app: AppId) {
    // Nobody listening is fine.
    let _ = changes.send(app);
}

//! The smallest exchange that proves a server answers its own protocol.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Running;
use crate::wait::{Poll, wait_for};

const LIMIT: Duration = Duration::from_secs(2);

/// Asks the server behind `url`; the error says what is wrong. The URL's password is in no error.
pub(crate) async fn reachable(url: &str) -> Result<()> {
    let (scheme, rest) = url.split_once("://").context("not a URL")?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let (user, address) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (hello, port) = match scheme {
        "amqp" => (b"AMQP\0\0\x09\x01".to_vec(), 5672),
        "amqps" => (vec![], 5671),
        "redis" => (b"PING\r\n".to_vec(), 6379),
        "rediss" => (vec![], 6379),
        "postgres" | "postgresql" => (startup_message(user.split(':').next().unwrap_or(user)), 5432),
        _ => bail!("unknown scheme {scheme}"),
    };
    let address = if address.contains(':') {
        address.to_owned()
    } else {
        format!("{address}:{port}")
    };
    let exchange = async {
        let mut stream = TcpStream::connect(&address)
            .await
            .with_context(|| format!("connect to {address}"))?;
        if hello.is_empty() {
            return Ok(());
        }
        stream.write_all(&hello).await?;
        let mut answer = [0; 512];
        let length = stream.read(&mut answer).await.context("no answer")?;
        let answer = &answer[..length];
        let shown = String::from_utf8_lossy(answer);
        ensure!(
            serves(scheme, answer),
            "unexpected answer {shown:?} from {address}"
        );
        Ok(())
    };
    timeout(LIMIT, exchange)
        .await
        .with_context(|| format!("{address} did not answer within {LIMIT:?}"))?
}

/// Whether this is what a server says that serves. An error is an answer too, unless it says that it still starts.
fn serves(scheme: &str, answer: &[u8]) -> bool {
    match scheme {
        // A method frame (type 1).
        "amqp" => answer.starts_with(b"\x01"),
        // `-LOADING` is the other error that comes without a password.
        "redis" => answer.starts_with(b"+P") || answer.starts_with(b"-N"),
        // The port opens before the server accepts queries; until then it answers "cannot connect now".
        _ => {
            let starting = answer.windows(5).any(|code| code == b"57P03");
            answer.starts_with(b"R") || (answer.starts_with(b"E") && !starting)
        }
    }
}

/// The first message to Postgres, protocol 3.0; the database is the one that every server has.
fn startup_message(user: &str) -> Vec<u8> {
    let user = if user.is_empty() { "postgres" } else { user };
    let parameters = format!("user\0{user}\0database\0postgres\0\0");
    let length = u32::try_from(8 + parameters.len()).unwrap_or(u32::MAX);
    let head = [length.to_be_bytes(), 196_608_u32.to_be_bytes()];
    [&head.concat(), parameters.as_bytes()].concat()
}

/// Waits until a server that was just started answers; fails at once if its process ends.
pub(crate) async fn ready(url: &str, running: &mut Running, limit: Duration) -> Result<()> {
    let waited = wait_for(&format!("{url} to answer"), limit, async || {
        if let Some(status) = running.exited()? {
            bail!("the server ended with {status}");
        }
        Ok(match reachable(url).await {
            Ok(()) => Poll::Ready(()),
            Err(error) => Poll::NotYet(format!("{error:#}")),
        })
    })
    .await;
    waited.with_context(|| format!("its log ends with:\n{}", running.log_tail()))
}

/// Waits until a server that does not belong to this process answers.
pub(crate) async fn answers(url: &str, limit: Duration) -> Result<()> {
    wait_for(&format!("{url} to answer"), limit, async || {
        Ok(match reachable(url).await {
            Ok(()) => Poll::Ready(()),
            Err(error) => Poll::NotYet(format!("{error:#}")),
        })
    })
    .await
}

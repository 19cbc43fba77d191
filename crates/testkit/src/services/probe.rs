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
    let address = authority.rsplit('@').next().unwrap_or_default();
    let (hello, accept, port): (&[u8], &[u8], u16) = match scheme {
        // Protocol header; the answer is a method frame (type 1).
        "amqp" => (b"AMQP\0\0\x09\x01", b"\x01", 5672),
        "amqps" => (b"", b"", 5671),
        // `-NOAUTH` and `-LOADING`: an error is an answer, but only the former means that it serves.
        "redis" => (b"PING\r\n", b"+P-N", 6379),
        "rediss" => (b"", b"", 6379),
        // SSLRequest; the answer is one byte, S or N.
        "postgres" | "postgresql" => (b"\0\0\0\x08\x04\xd2\x16\x2f", b"SN", 5432),
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
        stream.write_all(hello).await?;
        let mut answer = [0; 2];
        let wanted = if scheme == "redis" { 2 } else { 1 };
        stream
            .read_exact(&mut answer[..wanted])
            .await
            .context("no answer")?;
        let fits = accept.chunks(wanted).any(|chunk| chunk == &answer[..wanted]);
        ensure!(fits, "unexpected answer {:?} from {address}", &answer[..wanted]);
        Ok(())
    };
    timeout(LIMIT, exchange)
        .await
        .with_context(|| format!("{address} did not answer within {LIMIT:?}"))?
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

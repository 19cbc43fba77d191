//! An open connection that knows how many exchanges it has carried, and whether the last was answered.
//!
//! The pooled client does not say whether a failed request went over a reused connection, nor whether a byte came
//! back. Both decide whether it may be sent again, so the stream notes them itself: HTTP/1.1 without pipelining
//! alternates, so a write after a read begins a new exchange.
//!
//! A deadline ends the attempt, not the connection: the client flushes what is left before it hangs up. So a write that
//! stands still ends the connection here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::client::TlsStream;

use crate::connections::Open;

/// How long a write may stand still, as long as the longest attempt: a receiver that does not read would otherwise keep the
/// connection and the body.
const STILL_MAX: Duration = Duration::from_secs(30);

/// What a connection tells about itself after a request over it failed. A clone shares the state.
#[derive(Clone, Default)]
pub(crate) struct Exchanges(Arc<State>);

#[derive(Default)]
struct State {
    /// Requests begun.
    begun: AtomicU32,
    /// Whether a byte came back since the last request began.
    answered: AtomicBool,
}

impl Exchanges {
    /// Whether the last request went over a connection that had carried another before, and got no byte back.
    pub(crate) fn is_reused_and_unanswered(&self) -> bool {
        // Relaxed: the failure that leads here was sent by the connection's task through a channel, which orders.
        self.0.begun.load(Ordering::Relaxed) > 1 && !self.0.answered.load(Ordering::Relaxed)
    }

    /// Called before each write, whatever becomes of it: a write that fails was an exchange too.
    fn wrote(&self) {
        let is_first = self.0.begun.load(Ordering::Relaxed) == 0;
        if is_first || self.0.answered.load(Ordering::Relaxed) {
            self.0.answered.store(false, Ordering::Relaxed);
            self.0.begun.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(&self) {
        self.0.answered.store(true, Ordering::Relaxed);
    }
}

/// A connection to a receiver.
pub(crate) struct Stream {
    transport: Transport,
    exchanges: Exchanges,
    _open: Open,
}

enum Transport {
    Plain(Guarded<TcpStream>),
    Tls(Guarded<TlsStream<TcpStream>>),
}

/// Ends a write that stands still.
type Guarded<S> = Pin<Box<TimeoutWriter<S>>>;

fn guarded<S: AsyncWrite>(stream: S) -> Guarded<S> {
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(STILL_MAX));
    Box::pin(stream)
}

impl Stream {
    pub(crate) fn plain(tcp: TcpStream, open: Open) -> Self {
        Self::new(Transport::Plain(guarded(tcp)), open)
    }

    pub(crate) fn tls(tls: TlsStream<TcpStream>, open: Open) -> Self {
        Self::new(Transport::Tls(guarded(tls)), open)
    }

    fn new(transport: Transport, open: Open) -> Self {
        Self {
            transport,
            exchanges: Exchanges::default(),
            _open: open,
        }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.exchanges.clone())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = match &mut self.transport {
            Transport::Plain(tcp) => tcp.as_mut().poll_read(cx, buf),
            Transport::Tls(tls) => tls.as_mut().poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            self.exchanges.read();
        }
        polled
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.exchanges.wrote();
        match &mut self.transport {
            Transport::Plain(tcp) => tcp.as_mut().poll_write(cx, buf),
            Transport::Tls(tls) => tls.as_mut().poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.exchanges.wrote();
        match &mut self.transport {
            Transport::Plain(tcp) => tcp.as_mut().poll_write_vectored(cx, bufs),
            Transport::Tls(tls) => tls.as_mut().poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(tcp) => tcp.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(tcp) => tcp.as_mut().poll_flush(cx),
            Transport::Tls(tls) => tls.as_mut().poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(tcp) => tcp.as_mut().poll_shutdown(cx),
            Transport::Tls(tls) => tls.as_mut().poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;
    use crate::connections::Count;

    #[tokio::test]
    async fn a_write_that_stands_still_ends() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let tcp = TcpStream::connect(listener.local_addr()?).await?;
        let (_reads_nothing, _) = listener.accept().await?;
        let mut stream = Stream::plain(tcp, Count::default().open());
        // From here on time passes when nothing else can.
        tokio::time::pause();
        let began = Instant::now();
        let ended = loop {
            if let Err(error) = stream.write_all(&[0; 65_536]).await {
                break error;
            }
        };
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= STILL_MAX);
        Ok(())
    }
}

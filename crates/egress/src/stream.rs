//! An open connection that knows how many exchanges it has carried, and whether the last was answered.
//!
//! The pooled client does not say whether a failed request went over a reused connection, nor whether a byte came
//! back. Both decide whether it may be sent again, so the stream notes them itself: HTTP/1.1 without pipelining
//! alternates, so a write after a read begins a new exchange.
//!
//! A deadline ends the attempt, not the connection: the client flushes what is left before it hangs up. So a write that
//! stands still ends the connection here, and so does one whose request is older than any attempt.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::client::TlsStream;

use crate::connections::Open;

/// How long a write may stand still, and how long a request may be written, as long as the longest attempt: a receiver that
/// does not read, or a little now and then, would otherwise keep the connection and the body.
const WRITE_MAX: Duration = Duration::from_secs(30);
/// A receiver that closes an idle connection while a request is on its way has done so within a trip there and back. Later it
/// may have worked on the request.
const CROSSING_MAX: Duration = Duration::from_secs(1);

/// What a connection tells about itself after a request over it failed. A clone shares the state.
#[derive(Clone)]
pub(crate) struct Exchanges(Arc<State>);

struct State {
    opened: Instant,
    /// Requests begun.
    begun: AtomicU32,
    /// When the last one began: milliseconds after the connection was opened.
    begun_at: AtomicU64,
    /// Whether a byte came back since the last request began.
    answered: AtomicBool,
}

impl Exchanges {
    fn new() -> Self {
        Self(Arc::new(State {
            opened: Instant::now(),
            begun: AtomicU32::new(0),
            begun_at: AtomicU64::new(0),
            answered: AtomicBool::new(false),
        }))
    }

    /// Whether the last request went just now over a connection that had carried another before, and got no byte back: the
    /// receiver had closed the idle connection.
    pub(crate) fn crossed_a_close(&self) -> bool {
        // Relaxed: the failure that leads here was sent by the connection's task through a channel, which orders.
        self.0.begun.load(Ordering::Relaxed) > 1
            && !self.0.answered.load(Ordering::Relaxed)
            && self.age() <= CROSSING_MAX
    }

    /// How long the connection has been open.
    pub(crate) fn open_for(&self) -> Duration {
        self.0.opened.elapsed()
    }

    /// How long ago the last request began.
    fn age(&self) -> Duration {
        let begun_at = Duration::from_millis(self.0.begun_at.load(Ordering::Relaxed));
        self.0.opened.elapsed().saturating_sub(begun_at)
    }

    /// Called before each write, whatever becomes of it: a write that fails was an exchange too.
    ///
    /// # Errors
    /// When the request has been written for too long.
    fn write(&self) -> io::Result<()> {
        let is_first = self.0.begun.load(Ordering::Relaxed) == 0;
        if is_first || self.0.answered.load(Ordering::Relaxed) {
            let at = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.0.begun_at.store(at, Ordering::Relaxed);
            self.0.answered.store(false, Ordering::Relaxed);
            self.0.begun.fetch_add(1, Ordering::Relaxed);
        } else if self.age() > WRITE_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
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
    stream.set_timeout(Some(WRITE_MAX));
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
            exchanges: Exchanges::new(),
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
        self.exchanges.write()?;
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
        self.exchanges.write()?;
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
    use tokio::io::AsyncReadExt as _;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

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
        assert!(began.elapsed() >= WRITE_MAX);
        Ok(())
    }

    #[tokio::test]
    async fn a_request_is_not_written_for_longer_than_an_attempt_takes() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let tcp = TcpStream::connect(listener.local_addr()?).await?;
        let (mut receiver, _) = listener.accept().await?;
        let mut stream = Stream::plain(tcp, Count::default().open());
        tokio::time::pause();
        stream.write_all(b"a").await?;
        tokio::time::advance(WRITE_MAX / 2).await;
        stream.write_all(b"little").await?;
        tokio::time::advance(WRITE_MAX).await;
        let ended = stream.write_all(b"more").await;
        assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        // The next request has its own time.
        receiver.write_all(b"answer").await?;
        stream.read_exact(&mut [0; 6]).await?;
        stream.write_all(b"next").await
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_connection_that_closes_at_once_may_have_been_closed_while_idle() {
        let exchanges = Exchanges::new();
        let _ = exchanges.write();
        assert!(!exchanges.crossed_a_close(), "the first request");
        exchanges.read();
        tokio::time::advance(10 * WRITE_MAX).await;
        let _ = exchanges.write();
        assert!(exchanges.crossed_a_close(), "over an idle connection");
        tokio::time::advance(2 * CROSSING_MAX).await;
        assert!(!exchanges.crossed_a_close(), "the receiver may have worked on it");
    }
}

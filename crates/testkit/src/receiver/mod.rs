//! A real HTTP/1.1 server that plays the customers' endpoints.
//!
//! It records every request it has read whole, then answers by the path's [`Script`]. A path without a script
//! answers 200 at once. Recording is bounded: [`MAX_REQUESTS`] and [`MAX_BYTES`] over all paths; what is beyond is
//! answered but only counted ([`Receiver::unrecorded`]), and the oracle refuses to judge then.

mod record;
mod script;
mod tls;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use self::record::Recording;
use self::script::{Closed, ReplyBody};
use crate::wait::{Poll, wait_for};

pub use record::{MAX_BYTES, MAX_REQUESTS, Recorded};
pub use script::{Reply, Script};

/// The largest request body that is read; a larger one gets 413 and is not recorded.
const MAX_BODY: usize = 16 << 20;
/// The most connections held open at once; the next ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 8_192;

/// The server; it and its connections end when this is dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    certificate: Option<String>,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    scripts: Mutex<HashMap<String, Script>>,
    recording: Mutex<Recording>,
}

impl State {
    fn next_reply(&self, path: &str) -> (Reply, Duration) {
        lock(&self.scripts)
            .get_mut(path)
            .map_or((Reply::Status(200), Duration::ZERO), Script::next)
    }
}

impl Receiver {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub async fn start() -> Result<Self> {
        Self::start_on(Ipv4Addr::LOCALHOST.into()).await
    }

    /// Listens on a free port of another address, such as 127.0.0.2 (Linux answers on all of 127.0.0.0/8), to play
    /// another host.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub async fn start_on(ip: IpAddr) -> Result<Self> {
        Self::bind(ip, None).await
    }

    /// Listens with TLS, certified by itself for `localhost` and 127.0.0.1; see [`Receiver::certificate`].
    ///
    /// # Errors
    /// The certificate cannot be made or the socket not be opened.
    pub async fn start_tls() -> Result<Self> {
        Self::bind(Ipv4Addr::LOCALHOST.into(), Some(tls::self_signed()?)).await
    }

    async fn bind(ip: IpAddr, tls: Option<(TlsAcceptor, String)>) -> Result<Self> {
        let listener = TcpListener::bind((ip, 0))
            .await
            .with_context(|| format!("cannot listen on {ip}"))?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let (acceptor, certificate) = tls.unzip();
        let accepting = tokio::spawn(accept(listener, acceptor, state.clone()));
        Ok(Self {
            address,
            certificate,
            state,
            accepting,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate (PEM) that a client must trust; `None` without TLS.
    pub fn certificate(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    /// The URL of a path, which starts with `/`.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.certificate.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}{path}", self.address)
    }

    /// From now on `path` answers by `script`, from its beginning.
    pub fn on(&self, path: &str, script: Script) {
        lock(&self.state.scripts).insert(path.to_owned(), script);
    }

    /// What `path` has received so far, in the order in which the requests were read whole.
    pub fn requests(&self, path: &str) -> Vec<Recorded> {
        lock(&self.state.recording)
            .path(path)
            .map(|p| p.requests.clone())
            .unwrap_or_default()
    }

    /// How many requests `path` has received.
    pub fn count(&self, path: &str) -> usize {
        lock(&self.state.recording)
            .path(path)
            .map_or(0, |p| p.requests.len())
    }

    /// How many requests came in over all paths.
    pub fn total(&self) -> usize {
        lock(&self.state.recording).total()
    }

    /// The most requests that `path` was answering at one time.
    pub fn peak_in_flight(&self, path: &str) -> usize {
        lock(&self.state.recording)
            .path(path)
            .map_or(0, |p| p.peak_in_flight)
    }

    /// How many requests were answered but, for want of room, not recorded.
    pub fn unrecorded(&self) -> usize {
        lock(&self.state.recording).unrecorded
    }

    /// Forgets all requests; scripts stay.
    pub fn clear(&self) {
        lock(&self.state.recording).clear();
    }

    /// Looks at the requests of `path` without copying them.
    pub fn with_requests<T>(&self, path: &str, look: impl FnOnce(&[Recorded]) -> T) -> T {
        look(
            lock(&self.state.recording)
                .path(path)
                .map_or(&[], |p| &p.requests),
        )
    }

    /// Waits until `holds` is true of the requests of `path`, and returns them.
    ///
    /// # Errors
    /// It does not hold within `limit`; the error shows the last requests.
    pub async fn wait_for(
        &self,
        path: &str,
        limit: Duration,
        mut holds: impl FnMut(&[Recorded]) -> bool,
    ) -> Result<Vec<Recorded>> {
        wait_for(&format!("the requests of {path}"), limit, async || {
            Ok(self.with_requests(path, |requests| {
                if holds(requests) {
                    return Poll::Ready(requests.to_vec());
                }
                let last = &requests[requests.len().saturating_sub(5)..];
                Poll::NotYet(format!("{} requests, the last: {last:#?}", requests.len()))
            }))
        })
        .await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections.spawn(connection(stream, tls.clone(), state.clone()));
            } else {
                // Out of file descriptors, most likely: give connections time to end.
                tokio::time::sleep(Duration::from_millis(10)).await;
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, state: Arc<State>) {
    // A client that goes away mid-request is part of the tests.
    let _ = stream.set_nodelay(true);
    match tls {
        None => serve(stream, state).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                serve(stream, state).await;
            }
        }
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, state: Arc<State>) {
    let service = service_fn(|request| answer(request, &state));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    let _ = served.await;
}

async fn answer(request: Request<Incoming>, state: &State) -> Result<Response<ReplyBody>, Closed> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        let refusal = Response::builder()
            .status(StatusCode::PAYLOAD_TOO_LARGE)
            .body(ReplyBody::empty());
        return refusal.map_err(|_| Closed);
    };
    let (reply, delay) = state.next_reply(&path);
    let _in_flight = InFlight::enter(state, &path);
    let recorded = Recorded::new(parts, body.to_bytes(), reply.status());
    lock(&state.recording).add(&path, recorded);
    tokio::time::sleep(delay).await;
    reply.response().await
}

/// Counts a request as in flight until it is answered or its client is gone.
struct InFlight<'a> {
    state: &'a State,
    path: &'a str,
}

impl<'a> InFlight<'a> {
    fn enter(state: &'a State, path: &'a str) -> Self {
        lock(&state.recording).path_mut(path).enter();
        Self { state, path }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        lock(&self.state.recording).path_mut(self.path).leave();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Receivers that misbehave on purpose, and a client that reaches them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use postrider_egress::{Client, Policy, Request, Resolve, ResolveError, ResolveFuture, Settings, Target};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

/// The deadline of most tests: short, since several of them wait for it to pass.
pub(crate) const DEADLINE: Duration = Duration::from_millis(300);
/// When a test that should have ended is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The limit of a test receiver over a request.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// A small successful response.
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A receiver on loopback. Its script is run for each connection with the connection's number, from 0.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Receiver {
    pub(crate) async fn start<F, Script>(script: Script) -> Self
    where
        Script: Fn(TcpStream, usize) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), script).await
    }

    pub(crate) async fn start_at<F, Script>(address: SocketAddr, script: Script) -> Self
    where
        Script: Fn(TcpStream, usize) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(script(stream, number));
            }
        });
        Self { address, connections }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook?x=1", self.address)
    }
}

/// A receiver that answers every first request of a connection with these bytes, then waits for the close.
pub(crate) async fn answering(answer: impl Into<Vec<u8>>) -> Receiver {
    let answer = answer.into();
    Receiver::start(move |mut stream, _| {
        let answer = answer.clone();
        async move {
            if read_request(&mut stream).await.is_some() {
                // The client may hang up on a long answer.
                let _ = stream.write_all(&answer).await;
                closed(&mut stream).await;
            }
        }
    })
    .await
}

/// Reads one request with a `Content-Length`; `None` when the client closed before one was complete.
pub(crate) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut received = Vec::new();
    loop {
        if let Some(end) = received.windows(4).position(|part| part == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).to_lowercase();
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))?
                .parse()
                .ok()?;
            if received.len() >= end + 4 + length {
                return Some(String::from_utf8_lossy(&received).into_owned());
            }
        }
        assert!(received.len() < REQUEST_BYTES_MAX, "a request without an end");
        if stream.read_buf(&mut received).await.ok()? == 0 {
            return None;
        }
    }
}

/// Waits until the client has closed the connection.
pub(crate) async fn closed(stream: &mut TcpStream) {
    let mut rest = [0; 1024];
    while matches!(stream.read(&mut rest).await, Ok(1..)) {}
}

/// A resolver whose answer is a function of how often it was asked.
pub(crate) struct Scripted<F> {
    answer: F,
    pub(crate) asked: AtomicUsize,
}

impl<F> Scripted<F>
where
    F: Fn(usize) -> Result<Vec<IpAddr>, ResolveError> + Send + Sync + 'static,
{
    pub(crate) fn new(answer: F) -> Arc<Self> {
        Arc::new(Self {
            answer,
            asked: AtomicUsize::new(0),
        })
    }
}

impl<F> Resolve for Scripted<F>
where
    F: Fn(usize) -> Result<Vec<IpAddr>, ResolveError> + Send + Sync + 'static,
{
    fn resolve<'a>(&'a self, _: &'a str) -> ResolveFuture<'a> {
        let answer = (self.answer)(self.asked.fetch_add(1, Ordering::SeqCst));
        Box::pin(async move { answer })
    }
}

/// A resolver that never answers.
pub(crate) struct Silent;

impl Resolve for Silent {
    fn resolve<'a>(&'a self, _: &'a str) -> ResolveFuture<'a> {
        Box::pin(std::future::pending())
    }
}

/// Loopback stands for the public internet in these tests.
pub(crate) fn loopback_policy() -> Policy {
    Policy::new(vec!["127.0.0.0/8".parse().expect("a network")], false)
}

pub(crate) fn client() -> Client {
    Client::new(Settings::default(), loopback_policy()).expect("default settings")
}

pub(crate) fn client_with(resolver: Arc<dyn Resolve>) -> Client {
    Client::with_resolver(Settings::default(), loopback_policy(), resolver).expect("default settings")
}

pub(crate) fn request(url: &str) -> Request {
    let url = Url::parse(url).expect("a URL");
    let mut headers = HeaderMap::new();
    headers.insert("content-type", "application/json".parse().expect("a value"));
    headers.insert("webhook-id", "msg_1".parse().expect("a value"));
    Request {
        target: Target::new(&url, &loopback_policy()).expect("a permitted URL"),
        headers,
        body: Bytes::from_static(b"{\"a\":1}"),
        deadline: DEADLINE,
    }
}

//! Opening a connection: resolve, judge, connect, shake hands.
//!
//! Guarantee: no socket is opened to an address that the policy did not pass, and the addresses that were judged are
//! the ones that are used. All of it ends at the request's deadline or after the connect timeout.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::connections::Count;
use crate::failure::{Failure, Phase, bounded};
use crate::phase::{deadline, in_phase};
use crate::policy::Policy;
use crate::resolver::{Resolve, ResolveError};
use crate::stream::Stream;

/// Addresses of one host that are tried. More would leave each too small a share of the time.
const ADDRESSES_MAX: usize = 4;

/// Opens connections for the pools. A clone shares everything.
#[derive(Clone)]
pub(crate) struct Connector(Arc<Parts>);

pub(crate) struct Parts {
    pub(crate) policy: Policy,
    pub(crate) resolver: Arc<dyn Resolve>,
    /// `None`: this machine has no root certificates.
    pub(crate) tls: Option<TlsConnector>,
    pub(crate) timeout: Duration,
    pub(crate) count: Count,
}

impl Connector {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let parts = Arc::clone(&self.0);
        let latest = Instant::now() + parts.timeout;
        // Read here, while the request's own task is running.
        let deadline = deadline().map_or(latest, |deadline| deadline.min(latest));
        Box::pin(async move { parts.open(&uri, deadline).await.map(TokioIo::new) })
    }
}

impl Parts {
    async fn open(&self, uri: &Uri, deadline: Instant) -> Result<Stream, Failure> {
        let host = uri
            .host()
            .ok_or_else(|| Failure::Internal("a request without a host".to_owned()))?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let is_https = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });

        let addresses = within(Phase::Dns, deadline, self.addresses(host, port)).await?;
        let tcp = in_phase(Phase::Connect, connect(&addresses, port, deadline)).await?;
        // A request is written in one piece; waiting for more would only delay it. Without it, it still works.
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        if !is_https {
            return Ok(Stream::plain(tcp, self.count.open()));
        }
        within(Phase::Tls, deadline, self.shake_hands(host, tcp)).await
    }

    /// The addresses of a host that the policy passes, in the order of trying.
    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<IpAddr>, Failure> {
        if let Ok(literal) = host.parse::<IpAddr>() {
            self.policy.check_socket(literal, Some(port))?;
            return Ok(vec![literal]);
        }
        let resolved = self.resolver.resolve(host).await.map_err(|error| match error {
            ResolveError::NoAddress => Failure::NoAddress,
            ResolveError::FailsAlone(why) => Failure::NoAnswer(why),
            ResolveError::Unavailable(why) => Failure::ResolverDown(why),
        })?;
        let mut blocked = None;
        let mut permitted = Vec::with_capacity(resolved.len().min(ADDRESSES_MAX));
        for address in alternating(&resolved) {
            match self.policy.check_socket(address, Some(port)) {
                Ok(()) => permitted.push(address),
                Err(reason) => blocked = blocked.or(Some(reason)),
            }
            if permitted.len() == ADDRESSES_MAX {
                break;
            }
        }
        match blocked {
            _ if !permitted.is_empty() => Ok(permitted),
            Some(reason) => Err(reason.into()),
            None => Err(Failure::NoAddress),
        }
    }

    async fn shake_hands(&self, host: &str, tcp: TcpStream) -> Result<Stream, Failure> {
        let tls = self.tls.as_ref().ok_or(Failure::NoRoots)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|error| Failure::Tls(bounded(&error)))?;
        let stream = tls
            .connect(name, tcp)
            .await
            .map_err(|error| Failure::from_handshake(&error))?;
        Ok(Stream::tls(stream, self.count.open()))
    }
}

/// IPv4 and IPv6 in turn, so that a family that does not work here cannot take up all the places.
fn alternating(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let mut v4 = addresses.iter().copied().filter(IpAddr::is_ipv4);
    let mut v6 = addresses.iter().copied().filter(IpAddr::is_ipv6);
    let mut is_v4_next = false;
    std::iter::from_fn(move || {
        is_v4_next = !is_v4_next;
        if is_v4_next {
            v4.next().or_else(|| v6.next())
        } else {
            v6.next().or_else(|| v4.next())
        }
    })
}

/// Tries one address after the other; each gets an equal share of the time that is left.
async fn connect(addresses: &[IpAddr], port: u16, deadline: Instant) -> Result<TcpStream, Failure> {
    let mut last = Failure::NoAddress;
    let mut untried = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        let now = Instant::now();
        let until = now + deadline.saturating_duration_since(now) / untried.max(1);
        untried -= 1;
        let address = SocketAddr::new(*address, port);
        let failure = match timeout_at(until, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => Failure::from_connect(address, &error),
            Err(_) => Failure::Timeout {
                phase: Phase::Connect,
            },
        };
        // Another address would fare no better.
        if failure.is_ours() {
            return Err(failure);
        }
        // What another address said tells more than that there is no way to this one.
        if last == Failure::NoAddress || !failure.is_unreachable() {
            last = failure;
        }
    }
    Err(last)
}

async fn within<T>(
    phase: Phase,
    deadline: Instant,
    future: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match in_phase(phase, timeout_at(deadline, future)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::Timeout { phase }),
    }
}

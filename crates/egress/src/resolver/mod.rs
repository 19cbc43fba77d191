//! From a name to addresses, and whose fault it is when there are none.
//!
//! [`SystemResolver`] asks, in this order: what every system knows (`localhost`, RFC 6761), the hosts file as it was
//! at start, and the name servers of the system's configuration, or others that it was given. A machine without working name servers can so
//! still deliver to `localhost` and to what its hosts file names. There is no fall-back to anybody's public name
//! servers: what this machine was not told to ask, it does not ask.
//!
//! A name with a dot is asked for as it is, and nothing else: what the system's search domains make of it is another
//! name. One without a dot, as services have in Compose and Kubernetes, is looked for in the search domains first.
//!
//! No answer is our fault, unless it is always the same name that gets none ([`alone`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use hickory_resolver::Hosts;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};

use upstream::Upstream;

mod alone;
mod cache;
#[cfg(test)]
mod tests;
mod upstream;

/// The future that [`Resolve::resolve`] gives.
pub type ResolveFuture<'a> = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveError>> + Send + 'a>>;

/// Finds the addresses of a host. Answers are judged by the policy afterwards, so an implementation need not.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of this name, best first. Called with names only, never with literal addresses.
    fn resolve<'a>(&'a self, host: &'a str) -> ResolveFuture<'a>;
}

/// Why there are no addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name does not exist, or exists without addresses: the endpoint's fault.
    #[error("the name does not exist or has no address")]
    NoAddress,
    /// The name's servers have given no answer for long while other names' do: the endpoint's fault, see [`alone`].
    #[error("{0}")]
    FailsAlone(String),
    /// The resolver is away, overloaded or broken: our fault.
    #[error("{0}")]
    Unavailable(String),
}

/// The resolver of the system's configuration, with a cache.
pub struct SystemResolver {
    hosts: Hosts,
    upstream: Option<Arc<Upstream>>,
}

impl SystemResolver {
    /// Reads the hosts file and the system's resolver configuration. When either cannot be read this is logged and
    /// done without: names that then cannot be resolved fail as [`ResolveError::Unavailable`].
    pub fn new() -> Self {
        Self::with_hosts_file(
            hickory_resolver::system_conf::read_system_conf()
                .and_then(|(config, options)| Upstream::new(config, options)),
        )
    }

    /// Asks these name servers in place of the system's; otherwise like [`Self::new`].
    pub fn asking(name_servers: &[SocketAddr]) -> Self {
        Self::searching(Vec::new(), name_servers)
    }

    fn searching(search: Vec<Name>, name_servers: &[SocketAddr]) -> Self {
        let servers = name_servers.iter().map(|address| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            server
        });
        let config = ResolverConfig::from_parts(None, search, servers.collect());
        Self::with_hosts_file(Upstream::new(config, ResolverOpts::default()))
    }

    fn with_hosts_file(upstream: Result<Upstream, NetError>) -> Self {
        let hosts = Hosts::from_system().unwrap_or_else(|error| {
            tracing::warn!(%error, "no hosts file");
            Hosts::default()
        });
        let upstream = upstream
            .inspect_err(|error| {
                tracing::warn!(%error, "no name server: only localhost and the hosts file resolve");
            })
            .ok()
            .map(Arc::new);
        Self { hosts, upstream }
    }

    async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        if is_localhost(host) {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        // A name that is no name can never exist.
        let name = Name::from_utf8(host).map_err(|_| ResolveError::NoAddress)?;
        let written = self.hosts_file_addresses(&name);
        if !written.is_empty() {
            return Ok(written);
        }
        let Some(upstream) = &self.upstream else {
            return Err(ResolveError::Unavailable(
                "no name server is configured".to_owned(),
            ));
        };
        upstream.ask(host, name).await
    }

    fn hosts_file_addresses(&self, name: &Name) -> Vec<IpAddr> {
        [RecordType::A, RecordType::AAAA]
            .into_iter()
            .filter_map(|kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind)))
            .flat_map(|found| {
                found
                    .answers()
                    .iter()
                    .filter_map(|record| record.data.ip_addr())
                    .collect::<Vec<_>>()
            })
            .collect()
    }
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self::new()
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str) -> ResolveFuture<'a> {
        Box::pin(self.lookup(host))
    }
}

/// `localhost` and what is below it (RFC 6761, section 6.3), with or without the final dot.
fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or(host);
    last.eq_ignore_ascii_case("localhost")
}

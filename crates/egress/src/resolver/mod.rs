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
use std::time::{Duration, Instant};

use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

use alone::Names;
use tokio::time::timeout;

use crate::failure::bounded;

mod alone;
#[cfg(test)]
mod tests;

/// Time for one question to one name server. With two tries a dead name server takes 2 s of the deadline.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
const QUERY_TRIES: usize = 2;
/// Longest lookup of a name that fails alone; below the shortest deadline of a request.
const ALONE_TIMEOUT: Duration = Duration::from_millis(500);
/// Answers kept: an A and an AAAA record set for each of 100,000 hosts.
const CACHE_ANSWERS: u64 = 200_000;
/// Short-lived answers are kept this long all the same, so that a host with a TTL of 0 is not asked about at every
/// connect.
const POSITIVE_TTL_MIN: Duration = Duration::from_secs(5);
/// A receiver that moves is followed within this time.
const POSITIVE_TTL_MAX: Duration = Duration::from_secs(60);
const NEGATIVE_TTL_MIN: Duration = Duration::from_secs(5);
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(30);
/// Questions under way at a time to one name server; beyond it lookups fail, as our fault.
const QUERIES_MAX: usize = 2048;

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
    upstream: Option<Upstream>,
}

/// The name servers, and what came of asking them lately.
struct Upstream {
    resolver: TokioResolver,
    /// Where a name without a dot is looked for, in this order, before it is asked for as it is.
    search: Vec<Name>,
    names: Names,
}

impl SystemResolver {
    /// Reads the hosts file and the system's resolver configuration. When either cannot be read this is logged and
    /// done without: names that then cannot be resolved fail as [`ResolveError::Unavailable`].
    pub fn new() -> Self {
        Self::with_hosts_file(
            hickory_resolver::system_conf::read_system_conf()
                .and_then(|(config, options)| upstream(config, options)),
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
        Self::with_hosts_file(upstream(config, ResolverOpts::default()))
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
            .ok();
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

impl Upstream {
    async fn ask(&self, host: &str, name: Name) -> Result<Vec<IpAddr>, ResolveError> {
        let mut unanswered = Unanswered(Some((&self.names, host)));
        let look = self.look(name);
        let found = if self.names.fails_alone(host, Instant::now()) {
            // The request's deadline must not pass first: that would be ours again.
            timeout(ALONE_TIMEOUT, look)
                .await
                .unwrap_or_else(|_| Err(blame(&NetError::Timeout)))
        } else {
            look.await
        };
        unanswered.0 = None;
        match found {
            Err(ResolveError::Unavailable(why)) => Err(if self.names.failed(host, Instant::now()) {
                ResolveError::FailsAlone(why)
            } else {
                ResolveError::Unavailable(why)
            }),
            answered => {
                self.names.answered(host, Instant::now());
                answered
            }
        }
    }

    /// The addresses of the first of the candidates that has any. That there are none was said only when it was said of
    /// all of them.
    async fn look(&self, name: Name) -> Result<Vec<IpAddr>, ResolveError> {
        let mut error = ResolveError::NoAddress;
        for name in self.candidates(name) {
            match self.addresses(name).await {
                Ok(addresses) => return Ok(addresses),
                Err(ResolveError::NoAddress) => {}
                Err(unavailable) => error = unavailable,
            }
        }
        Err(error)
    }

    /// What to ask for, fully qualified, in this order.
    fn candidates(&self, mut name: Name) -> Vec<Name> {
        let mut candidates = Vec::new();
        if !name.is_fqdn() && name.num_labels() == 1 {
            // What would be too long does not exist.
            let longer = |domain| name.clone().append_domain(domain).ok();
            candidates.extend(self.search.iter().filter_map(longer));
        }
        name.set_fqdn(true);
        candidates.push(name);
        candidates
    }

    async fn addresses(&self, name: Name) -> Result<Vec<IpAddr>, ResolveError> {
        let found = self.resolver.lookup_ip(name).await;
        let addresses: Vec<IpAddr> = found.map_err(|error| blame(&error))?.iter().collect();
        if addresses.is_empty() {
            return Err(ResolveError::NoAddress);
        }
        Ok(addresses)
    }
}

/// A lookup under way: dropped with it, at the request's deadline, it counts as one that failed.
struct Unanswered<'a>(Option<(&'a Names, &'a str)>);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some((names, host)) = self.0 {
            names.failed(host, Instant::now());
        }
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

fn upstream(config: ResolverConfig, mut options: ResolverOpts) -> Result<Upstream, NetError> {
    let mut search: Vec<Name> = Vec::new();
    for domain in config.domain().into_iter().chain(config.search()) {
        if !search.contains(domain) {
            search.push(domain.clone());
        }
    }
    options.timeout = QUERY_TIMEOUT;
    options.attempts = QUERY_TRIES;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.cache_size = CACHE_ANSWERS;
    options.positive_min_ttl = Some(POSITIVE_TTL_MIN);
    options.positive_max_ttl = Some(POSITIVE_TTL_MAX);
    options.negative_min_ttl = Some(NEGATIVE_TTL_MIN);
    options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
    options.max_active_requests = QUERIES_MAX;
    options.use_hosts_file = ResolveHosts::Never;
    let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()?;
    Ok(Upstream {
        resolver,
        search,
        names: Names::default(),
    })
}

/// `localhost` and what is below it (RFC 6761, section 6.3), with or without the final dot.
fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or(host);
    last.eq_ignore_ascii_case("localhost")
}

/// Only an answer that says "there is nothing" is the endpoint's fault.
fn blame(error: &NetError) -> ResolveError {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(answer))
            if matches!(
                answer.response_code,
                ResponseCode::NXDomain | ResponseCode::NoError
            ) =>
        {
            ResolveError::NoAddress
        }
        // The text of the others names the question at most, not the endpoint.
        NetError::Dns(DnsError::ResponseCode(code)) => {
            ResolveError::Unavailable(format!("the name server answered {}", bounded(code)))
        }
        error => ResolveError::Unavailable(bounded(error)),
    }
}

//! Asking the name servers: which names, for which kinds of address, and for how long.
//!
//! Guarantees: [`ResolveError::NoAddress`] is given only when it was said of every name that was asked for, for IPv4 and
//! for IPv6; an answer that failed is never taken for one that says "nothing". Addresses of one kind do not wait for
//! long for the other kind's.

use std::net::IpAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::time::timeout;

use super::ResolveError;
use super::alone::Names;
use crate::failure::bounded;

/// Time for one try of one question.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// Tries after the first one. Two tries in all: a dead name server takes 2 s of the deadline, and of the 3 s that
/// lookup, TCP and TLS have together by default.
const QUERY_RETRIES: usize = 1;
/// How long addresses of one kind wait for the other kind's. Many name servers drop questions for IPv6 addresses.
const OTHER_KIND_WAIT: Duration = Duration::from_millis(200);
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

/// The name servers, and what came of asking them lately.
pub(super) struct Upstream {
    resolver: TokioResolver,
    /// Where a name without a dot is looked for, in this order, before it is asked for as it is.
    search: Vec<Name>,
    pub(super) names: Names,
}

impl Upstream {
    pub(super) fn new(config: ResolverConfig, mut options: ResolverOpts) -> Result<Self, NetError> {
        let mut search: Vec<Name> = Vec::new();
        for domain in config.domain().into_iter().chain(config.search()) {
            if !search.contains(domain) {
                search.push(domain.clone());
            }
        }
        options.timeout = QUERY_TIMEOUT;
        options.attempts = QUERY_RETRIES;
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
        Ok(Self {
            resolver,
            search,
            names: Names::default(),
        })
    }

    pub(super) async fn ask(&self, host: &str, name: Name) -> Result<Vec<IpAddr>, ResolveError> {
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
            match self.both_kinds(name).await {
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

    /// IPv4 addresses, then IPv6 ones. Asked for at once.
    async fn both_kinds(&self, name: Name) -> Result<Vec<IpAddr>, ResolveError> {
        let mut v4 = pin!(self.one_kind(name.clone(), RecordType::A));
        let mut v6 = pin!(self.one_kind(name, RecordType::AAAA));
        let (v4, v6) = tokio::select! {
            v4 = &mut v4 => {
                let v6 = other_kind(&v4, v6).await;
                (v4, v6)
            }
            v6 = &mut v6 => (other_kind(&v6, v4).await, v6),
        };
        match (v4, v6) {
            (Ok(v4), Ok(v6)) => Ok([v4, v6].concat()),
            (Ok(addresses), Err(_)) | (Err(_), Ok(addresses)) => Ok(addresses),
            (Err(ResolveError::NoAddress), Err(error)) | (Err(error), Err(_)) => Err(error),
        }
    }

    /// The addresses of one kind; at least one.
    async fn one_kind(&self, name: Name, kind: RecordType) -> Result<Vec<IpAddr>, ResolveError> {
        let found = self.resolver.lookup(name, kind).await;
        let found = found.map_err(|error| blame(&error))?;
        let records = found.answers().iter();
        let addresses: Vec<IpAddr> = records.filter_map(|record| record.data.ip_addr()).collect();
        if addresses.is_empty() {
            return Err(ResolveError::NoAddress);
        }
        Ok(addresses)
    }
}

/// What the other kind's lookup gives: soon when this one found addresses, and in its own time when not.
async fn other_kind(
    this: &Result<Vec<IpAddr>, ResolveError>,
    other: impl Future<Output = Result<Vec<IpAddr>, ResolveError>>,
) -> Result<Vec<IpAddr>, ResolveError> {
    if this.is_err() {
        return other.await;
    }
    let other = timeout(OTHER_KIND_WAIT, other).await;
    other.unwrap_or_else(|_| Err(blame(&NetError::Timeout)))
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

//! Asking the name servers: which names, for which kinds of address, and for how long.
//!
//! Guarantees: [`ResolveError::NoAddress`] is given only when it was said of every name that was asked for, for IPv4 and
//! for IPv6; an answer that failed is never taken for one that says "nothing". Addresses of one kind do not wait for
//! long for the other kind's.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::domain::usage::{IN_ADDR_ARPA_127, INVALID, IP6_ARPA_1, ONION, ZoneUsage};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::time::timeout;

use super::ResolveError;
use super::alone::Names;
use super::cache::{Answer, Cache, Outcome};
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
/// Longest lookup of a name, with all search domains. It comes to this only with several dead ones.
const LOOKUP_MAX: Duration = Duration::from_secs(10);
/// Questions under way at a time over TCP to one name server; beyond it lookups fail, as our fault.
const QUERIES_MAX: usize = 2048;

/// The name servers, and what came of asking them lately.
pub(super) struct Upstream {
    resolver: TokioResolver,
    cache: Cache,
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
        // It would keep whole messages, so its memory would be the servers' to choose.
        options.cache_size = 0;
        options.max_active_requests = QUERIES_MAX;
        options.use_hosts_file = ResolveHosts::Never;
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()?;
        Ok(Self {
            resolver,
            cache: Cache::new(),
            search,
            names: Names::default(),
        })
    }

    pub(super) async fn ask(self: &Arc<Self>, host: &str, name: Name) -> Result<Vec<IpAddr>, ResolveError> {
        let candidates = self.candidates(name);
        if candidates.is_empty() {
            return Err(ResolveError::NoAddress);
        }
        let mut unanswered = Unanswered(Some((&self.names, host)));
        let look = || Arc::clone(self).look(host.to_owned(), candidates);
        let find = self.cache.find(host, look);
        let found = if self.names.fails_alone(host, Instant::now()) {
            // The request's deadline must not pass first: that would be ours again.
            timeout(ALONE_TIMEOUT, find).await.unwrap_or_else(|_| late())
        } else {
            find.await
        };
        unanswered.0 = None;
        match found {
            Err(why) if self.names.failed(host, Instant::now()) => Err(ResolveError::FailsAlone(why)),
            Err(why) => Err(ResolveError::Unavailable(why)),
            Ok(answer) if answer.is_negative() => Err(ResolveError::NoAddress),
            Ok(answer) => Ok(answer.addresses.to_vec()),
        }
    }

    /// Asks. Only here, and not where an answer was kept, it shows that the name servers work.
    async fn look(self: Arc<Self>, host: String, candidates: Vec<Name>) -> Outcome {
        let found = timeout(LOOKUP_MAX, self.first(candidates)).await;
        let found = found.unwrap_or_else(|_| late());
        if found.is_ok() {
            self.names.answered(&host, Instant::now());
        }
        found
    }

    /// What the first of the candidates has that has any address. That there are none was said only when it was said of
    /// all of them.
    async fn first(&self, candidates: Vec<Name>) -> Outcome {
        let mut so_far: Option<Outcome> = None;
        for name in candidates {
            let found = self.both_kinds(name).await;
            so_far = Some(match (so_far, found) {
                (None, found) => found,
                (Some(Err(_)), Ok(found)) if !found.is_negative() => Ok(found.in_part()),
                (Some(Ok(none)), Ok(found)) => Ok(Answer {
                    ttl: found.ttl.min(none.ttl),
                    ..found
                }),
                (Some(Err(why)), _) | (_, Err(why)) => Err(why),
            });
            if matches!(&so_far, Some(Ok(found)) if !found.is_negative()) {
                break;
            }
        }
        so_far.unwrap_or_else(|| Ok(Answer::negative(None)))
    }

    /// What to ask for, fully qualified, in this order. None, where no name server would be asked.
    fn candidates(&self, mut name: Name) -> Vec<Name> {
        let mut candidates = Vec::new();
        if !name.is_fqdn() && name.num_labels() == 1 {
            // What would be too long does not exist.
            let longer = |domain| name.clone().append_domain(domain).ok();
            candidates.extend(self.search.iter().filter_map(longer));
        }
        name.set_fqdn(true);
        candidates.push(name);
        candidates.retain(|name| !is_special(name));
        candidates
    }

    /// IPv4 addresses, then IPv6 ones. Asked for at once.
    async fn both_kinds(&self, name: Name) -> Outcome {
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
            (Ok(v4), Ok(v6)) => Ok(v4.and(v6)),
            (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.is_negative() => Ok(found.in_part()),
            (Err(why), _) | (_, Err(why)) => Err(why),
        }
    }

    /// The addresses of one kind.
    async fn one_kind(&self, name: Name, kind: RecordType) -> Outcome {
        let found = match self.resolver.lookup(name, kind).await {
            Ok(found) => found,
            Err(error) => return blame(&error),
        };
        let records = found.answers();
        let addresses = || records.iter().filter_map(|record| record.data.ip_addr());
        if addresses().next().is_none() {
            return Ok(Answer::negative(None));
        }
        let ttl = records.iter().map(|record| record.ttl).min();
        Ok(Answer::positive(addresses(), ttl.unwrap_or_default()))
    }
}

/// What the other kind's lookup gives: soon when this one found addresses, and in its own time when not.
async fn other_kind(this: &Outcome, other: impl Future<Output = Outcome>) -> Outcome {
    if matches!(this, Ok(found) if !found.is_negative()) {
        let other = timeout(OTHER_KIND_WAIT, other).await;
        return other.unwrap_or_else(|_| late());
    }
    other.await
}

fn late() -> Outcome {
    blame(&NetError::Timeout)
}

/// Names without an address of which no name server is asked (RFC 6761, RFC 7686). The library would answer for them, and
/// that would look as if a name server had.
fn is_special(name: &Name) -> bool {
    let zones: [&ZoneUsage; 4] = [&INVALID, &ONION, &IN_ADDR_ARPA_127, &IP6_ARPA_1];
    zones.iter().any(|zone| zone.zone_of(name))
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
fn blame(error: &NetError) -> Outcome {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(answer))
            if matches!(
                answer.response_code,
                ResponseCode::NXDomain | ResponseCode::NoError
            ) =>
        {
            Ok(Answer::negative(answer.negative_ttl))
        }
        // The text of the others names the question at most, not the endpoint.
        NetError::Dns(DnsError::ResponseCode(code)) => {
            Err(format!("the name server answered {}", bounded(code)))
        }
        error => Err(bounded(error)),
    }
}

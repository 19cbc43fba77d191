//! What is known of names, and what is being found out.
//!
//! Guarantees: of many who want the same name one lookup is made, which goes on when who began it has gone; a failed
//! lookup is not kept; an answer is kept for its TTL, within limits. Memory is bounded: [`NAMES_MAX`] names, each with
//! at most [`KIND_ADDRESSES_MAX`] addresses of a kind whatever its servers sent, so below 1 KiB each.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::Expiry;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Names of which an answer is kept.
const NAMES_MAX: u64 = 100_000;
/// Addresses kept of each kind, IPv4 and IPv6. Only a few are ever tried.
const KIND_ADDRESSES_MAX: usize = 8;
/// Lookups under way at a time; beyond it they fail, as our fault.
const LOOKUPS_MAX: usize = 10_000;
/// Short-lived answers are kept this long all the same, so that a host with a TTL of 0 is not asked about at every
/// connect.
const POSITIVE_TTL_MIN: Duration = Duration::from_secs(5);
/// New connections follow a receiver that moves within this time; old ones end, see
/// [`crate::Settings::connection_age_max`].
const POSITIVE_TTL_MAX: Duration = Duration::from_secs(60);
const NEGATIVE_TTL_MIN: Duration = Duration::from_secs(5);
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(30);

/// What was said of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// None: that it has no address was said, too.
    pub(super) addresses: Arc<[IpAddr]>,
    /// How long it is kept.
    pub(super) ttl: Duration,
}

impl Answer {
    /// Addresses of one kind, of records of which the shortest-lived is kept for so many seconds.
    pub(super) fn positive(addresses: impl Iterator<Item = IpAddr>, ttl: u32) -> Self {
        Self {
            addresses: addresses.take(KIND_ADDRESSES_MAX).collect(),
            ttl: Duration::from_secs(ttl.into()).clamp(POSITIVE_TTL_MIN, POSITIVE_TTL_MAX),
        }
    }

    /// There is no address; for so many seconds, if that was said.
    pub(super) fn negative(ttl: Option<u32>) -> Self {
        let ttl = Duration::from_secs(ttl.unwrap_or_default().into());
        Self {
            addresses: Arc::default(),
            ttl: ttl.clamp(NEGATIVE_TTL_MIN, NEGATIVE_TTL_MAX),
        }
    }

    pub(super) fn is_negative(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The same for a short time, since a part of what was asked was not answered.
    pub(super) fn in_part(self) -> Self {
        Self {
            ttl: POSITIVE_TTL_MIN,
            ..self
        }
    }

    /// With those of the other kind behind them.
    pub(super) fn and(self, other: Self) -> Self {
        match (self.is_negative(), other.is_negative()) {
            (false, true) => self,
            (true, false) => other,
            _ => Self {
                addresses: self.addresses.iter().chain(&*other.addresses).copied().collect(),
                ttl: self.ttl.min(other.ttl),
            },
        }
    }
}

/// What came of a lookup, or why nothing did: then nothing is known.
pub(super) type Outcome = Result<Answer, String>;

/// A lookup under way, and its outcome once there is one.
type Flight = watch::Receiver<Option<Outcome>>;

/// Answers and lookups. A clone shares them.
#[derive(Clone)]
pub(super) struct Cache(Arc<Inner>);

struct Inner {
    answers: moka::sync::Cache<String, Answer>,
    flights: Mutex<HashMap<String, Flight>>,
}

impl Cache {
    pub(super) fn new() -> Self {
        let answers = moka::sync::Cache::builder()
            .max_capacity(NAMES_MAX)
            .expire_after(Lifetime)
            .build();
        Self(Arc::new(Inner {
            answers,
            flights: Mutex::default(),
        }))
    }

    /// What is known of the host, or what comes of a lookup: of the one that is under way, or of this one.
    pub(super) async fn find<L>(&self, host: &str, lookup: impl FnOnce() -> L) -> Outcome
    where
        L: Future<Output = Outcome> + Send + 'static,
    {
        if let Some(answer) = self.0.answers.get(host) {
            return Ok(answer);
        }
        let mut flight = self.flight(host, lookup)?;
        let broken_off = || "the lookup was broken off".to_owned();
        let outcome = flight.wait_for(Option::is_some).await;
        outcome
            .map_err(|_| broken_off())?
            .clone()
            .ok_or_else(broken_off)?
    }

    fn flight<L>(&self, host: &str, lookup: impl FnOnce() -> L) -> Result<Flight, String>
    where
        L: Future<Output = Outcome> + Send + 'static,
    {
        let mut flights = self.0.flights.lock();
        if let Some(flight) = flights.get(host) {
            return Ok(flight.clone());
        }
        // One may have ended since the first look.
        if let Some(answer) = self.0.answers.get(host) {
            return Ok(watch::channel(Some(Ok(answer))).1);
        }
        if flights.len() >= LOOKUPS_MAX {
            return Err("too many lookups are under way".to_owned());
        }
        let (outcome_is, flight) = watch::channel(None);
        flights.insert(host.to_owned(), flight.clone());
        let landing = Landing {
            cache: self.clone(),
            host: host.to_owned(),
        };
        let lookup = lookup();
        // A runtime that is ending drops the task at once, and with it the landing, which takes the lock.
        drop(flights);
        tokio::spawn(async move {
            let outcome = lookup.await;
            if let Ok(answer) = &outcome {
                landing
                    .cache
                    .0
                    .answers
                    .insert(landing.host.clone(), answer.clone());
            }
            drop(landing);
            outcome_is.send_replace(Some(outcome));
        });
        Ok(flight)
    }
}

/// Ends a lookup, even one that panicked: the next who asks begins another.
struct Landing {
    cache: Cache,
    host: String,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.cache.0.flights.lock().remove(&self.host);
    }
}

/// Each answer has a time of its own.
struct Lifetime;

impl Expiry<String, Answer> for Lifetime {
    fn expire_after_create(&self, _: &String, answer: &Answer, _: Instant) -> Option<Duration> {
        Some(answer.ttl)
    }

    fn expire_after_update(
        &self,
        _: &String,
        answer: &Answer,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(answer.ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(answer: &Answer) -> u64 {
        answer.ttl.as_secs()
    }

    #[test]
    fn answers_are_kept_for_their_ttl_within_limits() {
        let address = || std::iter::once(IpAddr::from([192, 0, 2, 7]));
        for (ttl, kept) in [(0, 5), (20, 20), (86_400, 60)] {
            assert_eq!(seconds(&Answer::positive(address(), ttl)), kept);
        }
        for (ttl, kept) in [(None, 5), (Some(0), 5), (Some(20), 20), (Some(86_400), 30)] {
            assert_eq!(seconds(&Answer::negative(ttl)), kept);
        }
        let (one, other) = (Answer::positive(address(), 50), Answer::positive(address(), 40));
        assert_eq!(seconds(&one.clone().and(other)), 40);
        assert_eq!(
            one.clone().and(Answer::negative(None)),
            one,
            "the absence of one kind does not shorten it"
        );
        assert_eq!(
            seconds(&Answer::negative(Some(30)).and(Answer::negative(Some(10)))),
            10
        );
        assert_eq!(seconds(&one.in_part()), 5);
    }

    #[tokio::test]
    async fn many_who_want_one_name_make_one_lookup() {
        let (cache, asked) = (Cache::new(), Arc::new(Mutex::new(0)));
        let (go, gone) = watch::channel(false);
        let lookup = || {
            *asked.lock() += 1;
            let mut gone = gone.clone();
            async move {
                let _ = gone.wait_for(|gone| *gone).await;
                Ok(Answer::negative(None))
            }
        };
        let many: Vec<_> = (0..50).map(|_| cache.find("hooks.example.com", lookup)).collect();
        let mut waiting: Vec<_> = many.into_iter().map(Box::pin).collect();
        for waits in &mut waiting {
            let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(waits.as_mut().poll(cx))).await;
            assert!(polled.is_pending());
        }
        // It goes on without who began it.
        drop(waiting.remove(0));
        go.send_replace(true);
        for waits in waiting {
            assert_eq!(waits.await, Ok(Answer::negative(None)));
        }
        assert_eq!(
            cache.find("hooks.example.com", lookup).await,
            Ok(Answer::negative(None))
        );
        assert_eq!(*asked.lock(), 1);
    }

    #[tokio::test]
    async fn what_failed_is_not_kept() {
        let cache = Cache::new();
        let failed = Err("no answer".to_owned());
        let found = cache.find("hooks.example.com", || async { Err("no answer".to_owned()) });
        assert_eq!(found.await, failed);
        let panics = cache.find("hooks.example.com", || async { panic!("in a test") });
        assert!(panics.await.is_err());
        let found = cache.find("hooks.example.com", || async { Ok(Answer::negative(None)) });
        assert!(found.await.is_ok());
    }
}

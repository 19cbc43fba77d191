//! The judge of "no accepted message is lost".
//!
//! Producers tell it each message that was *acknowledged* (202), with the endpoints that should get it. It compares
//! that with what receivers answered with 2xx, by the `webhook-id` header. A message that was sent but not
//! acknowledged may or may not arrive; it is counted as `unacknowledged` and is no fault.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::receiver::Receiver;
use crate::wait::{Poll, wait_for_every};

/// The most deliveries one oracle remembers.
const MAX_EXPECTED: usize = 2_000_000;
/// How many of a verdict's ids are kept and shown.
const SHOWN: usize = 20;
/// The pause between two judgements: each reads everything that was recorded.
const JUDGE_EVERY: Duration = Duration::from_millis(200);

/// Collects acknowledged messages from any number of producers.
#[derive(Debug, Default)]
pub struct Oracle {
    hasher: RandomState,
    /// Endpoint URL to message id to the hash of its body.
    expected: Mutex<HashMap<String, HashMap<String, u64>>>,
}

/// What became of the acknowledged messages.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Deliveries that were to be made.
    pub expected: usize,
    /// Deliveries never answered with 2xx.
    pub missing: usize,
    /// Some of the missing, as `URL message-id`.
    pub missing_ids: Vec<String>,
    /// 2xx answers beyond the first of each delivery.
    pub duplicates: usize,
    /// Requests of expected deliveries whose body is not what was accepted, as `URL message-id`.
    pub wrong_body: Vec<String>,
    /// Ids that arrived at an expected endpoint without having been acknowledged.
    pub unacknowledged: usize,
}

impl Oracle {
    /// An oracle that expects nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A message was acknowledged: `body` is to arrive at each of these endpoint URLs (see [`Receiver::url`]).
    ///
    /// # Panics
    /// If more than 2,000,000 deliveries are expected.
    pub fn acknowledged(
        &self,
        message_id: &str,
        body: &[u8],
        urls: impl IntoIterator<Item = impl AsRef<str>>,
    ) {
        let hash = self.hasher.hash_one(body);
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        for url in urls {
            let messages = expected.entry(url.as_ref().to_owned()).or_default();
            messages.insert(message_id.to_owned(), hash);
            assert!(
                messages.len() <= MAX_EXPECTED,
                "an oracle remembers at most {MAX_EXPECTED} deliveries"
            );
        }
    }

    /// How many deliveries are expected so far.
    pub fn expected(&self) -> usize {
        self.expected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .map(HashMap::len)
            .sum()
    }

    /// Compares what was acknowledged with what these receivers answered with 2xx until now.
    ///
    /// # Errors
    /// A receiver ran out of room, or an expected URL belongs to none of them.
    pub fn judge(&self, receivers: &[&Receiver]) -> Result<Verdict> {
        for receiver in receivers {
            ensure!(
                receiver.unrecorded() == 0,
                "{} ran out of room for requests",
                receiver.address()
            );
        }
        let mut verdict = Verdict::default();
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        for (url, messages) in &*expected {
            let found = receivers
                .iter()
                .find_map(|r| Some((r, url.strip_prefix(&r.url(""))?)));
            let Some((receiver, path)) = found else {
                bail!("{url} belongs to none of the receivers")
            };
            self.judge_endpoint(url, receiver, path, messages, &mut verdict);
        }
        Ok(verdict)
    }

    fn judge_endpoint(
        &self,
        url: &str,
        receiver: &Receiver,
        path: &str,
        messages: &HashMap<String, u64>,
        verdict: &mut Verdict,
    ) {
        let mut seen: HashMap<String, usize> = HashMap::with_capacity(messages.len());
        receiver.with_requests(path, |requests| {
            for request in requests {
                let id = request.webhook_id();
                let Some(hash) = messages.get(id) else {
                    verdict.unacknowledged += 1;
                    continue;
                };
                if self.hasher.hash_one(&request.body[..]) != *hash && verdict.wrong_body.len() < SHOWN {
                    verdict.wrong_body.push(format!("{url} {id}"));
                }
                if request.succeeded() {
                    *seen.entry(id.to_owned()).or_default() += 1;
                }
            }
        });
        verdict.expected += messages.len();
        verdict.missing += messages.len() - seen.len();
        verdict.duplicates += seen.values().map(|count| count - 1).sum::<usize>();
        let missing = messages.keys().filter(|id| !seen.contains_key(*id));
        let room = SHOWN - verdict.missing_ids.len();
        verdict
            .missing_ids
            .extend(missing.take(room).map(|id| format!("{url} {id}")));
    }

    /// Waits until nothing is missing and returns the verdict; the caller judges duplicates.
    ///
    /// # Errors
    /// Something is still missing after `limit` (the error shows what), or a body is wrong.
    pub async fn settle(&self, receivers: &[&Receiver], limit: Duration) -> Result<Verdict> {
        wait_for_every(JUDGE_EVERY, "every acknowledged message", limit, async || {
            let verdict = self.judge(receivers)?;
            ensure!(verdict.wrong_body.is_empty(), "changed on the way: {verdict}");
            Ok(if verdict.missing == 0 {
                Poll::Ready(verdict)
            } else {
                Poll::NotYet(verdict.to_string())
            })
        })
        .await
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            expected,
            missing,
            missing_ids,
            duplicates,
            wrong_body,
            unacknowledged,
        } = self;
        write!(
            f,
            "{expected} deliveries expected, {missing} missing, {duplicates} duplicates, "
        )?;
        write!(f, "{unacknowledged} not acknowledged; ")?;
        write!(
            f,
            "missing for example {missing_ids:?}; wrong bodies {wrong_body:?}"
        )
    }
}

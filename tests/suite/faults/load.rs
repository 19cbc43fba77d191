//! Producers as customers have them: each sends a message under an idempotency key until it gets its 202.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postrider_testkit::oracle::Oracle;
use postrider_testkit::services::unique_name;
use postrider_testkit::wait::{Poll, wait_for};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::task::JoinSet;

use crate::api::{Api, id_of};

const PRODUCERS: usize = 6;
/// The pause of a producer between two messages.
const PACE: Duration = Duration::from_millis(25);
/// The pause after a refusal.
const AGAIN: Duration = Duration::from_millis(100);
/// The most messages of one load.
const MESSAGES_MAX: usize = 20_000;
/// How long one message may take to be accepted, over all tries.
const ACCEPT_LIMIT: Duration = Duration::from_secs(150);

/// Producers at work.
pub(crate) struct Load {
    producers: JoinSet<Result<()>>,
    seen: Arc<Seen>,
}

/// What the producers saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    stopping: AtomicBool,
    sent: AtomicUsize,
    accepted: AtomicUsize,
    /// Tries that ended without an answer.
    unanswered: AtomicUsize,
    refusals: Mutex<BTreeMap<Refusal, usize>>,
}

/// An answer other than 202.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) retry_after: bool,
}

struct Producer {
    /// The gateways, the preferred one first.
    apis: Vec<Api>,
    app: String,
    urls: Vec<String>,
    oracle: Arc<Oracle>,
    seen: Arc<Seen>,
    /// What this load's keys begin with.
    name: String,
}

impl Load {
    /// Starts producers; they take turns in which gateway they prefer.
    pub(super) fn start(apis: &[Api], app: &str, urls: &[String], oracle: &Arc<Oracle>) -> Self {
        let (seen, name) = (Arc::new(Seen::default()), unique_name("load"));
        let mut producers = JoinSet::new();
        for turn in 0..PRODUCERS {
            let mut apis = apis.to_vec();
            let count = apis.len();
            apis.rotate_left(turn % count);
            let (app, urls, oracle) = (app.to_owned(), urls.to_vec(), oracle.clone());
            let producer = Producer {
                apis,
                app,
                urls,
                oracle,
                seen: seen.clone(),
                name: name.clone(),
            };
            producers.spawn(producer.run());
        }
        Self { producers, seen }
    }

    pub(super) fn accepted(&self) -> usize {
        self.seen.accepted.load(Ordering::SeqCst)
    }

    /// Answers other than 202 so far.
    pub(crate) fn refusals(&self) -> BTreeMap<Refusal, usize> {
        self.seen
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until so many messages more than now are accepted.
    pub(crate) async fn progress(&self, more: usize, limit: Duration) -> Result<()> {
        let wanted = self.accepted() + more;
        wait_for(
            &format!("{more} more messages to be accepted"),
            limit,
            async || {
                Ok(if self.accepted() >= wanted {
                    Poll::Ready(())
                } else {
                    Poll::NotYet(self.to_string())
                })
            },
        )
        .await
    }

    /// Waits until a refusal with this code was seen.
    pub(super) async fn refused_with(&self, code: &str, limit: Duration) -> Result<()> {
        wait_for(&format!("a refusal with {code}"), limit, async || {
            let seen = self.refusals().keys().any(|refusal| refusal.code == code);
            Ok(if seen {
                Poll::Ready(())
            } else {
                Poll::NotYet(self.to_string())
            })
        })
        .await
    }

    /// Every refusal so far is a 503 that says when to come back.
    pub(super) fn only_asked_to_retry(&self) -> Result<()> {
        let polite = self
            .refusals()
            .keys()
            .all(|refusal| refusal.status == 503 && refusal.retry_after);
        ensure!(polite, "refused otherwise than by 503 with Retry-After: {self}");
        Ok(())
    }

    /// Lets every producer finish its message, which it must get accepted, and ends.
    pub(crate) async fn finish(mut self) -> Result<()> {
        self.seen.stopping.store(true, Ordering::SeqCst);
        while let Some(ended) = self.producers.join_next().await {
            ended?.with_context(|| self.to_string())?;
        }
        super::say(&self.to_string());
        Ok(())
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unanswered = self.seen.unanswered.load(Ordering::SeqCst);
        let refusals = self.refusals();
        write!(
            f,
            "{} accepted, {unanswered} tries without an answer, refusals {refusals:?}",
            self.accepted()
        )
    }
}

impl Producer {
    async fn run(self) -> Result<()> {
        while !self.seen.stopping.load(Ordering::SeqCst) {
            let number = self.seen.sent.fetch_add(1, Ordering::SeqCst);
            if number >= MESSAGES_MAX {
                return Ok(());
            }
            self.send(number).await?;
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }

    async fn send(&self, number: usize) -> Result<()> {
        let payload = json!({"load": self.name, "n": number});
        let body = json!({"eventType": "test.event", "payload": payload});
        let key = format!("{}-{number}", self.name);
        let id = tokio::time::timeout(ACCEPT_LIMIT, async {
            for gateway in (0..self.apis.len()).cycle() {
                if let Some(id) = self.send_once(&self.apis[gateway], &body, &key).await? {
                    return Ok(id);
                }
                tokio::time::sleep(AGAIN).await;
            }
            anyhow::bail!("no gateway")
        })
        .await
        .with_context(|| format!("message {number} was not accepted within {ACCEPT_LIMIT:?}"))??;
        self.oracle
            .acknowledged(&id, payload.to_string().as_bytes(), &self.urls);
        self.seen.accepted.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// The message's id, or `None` when it is to be sent again.
    async fn send_once(&self, api: &Api, body: &serde_json::Value, key: &str) -> Result<Option<String>> {
        let path = format!("/app/{}/msg", self.app);
        let Ok(answer) = api
            .call_with(Method::POST, &path, Some(body), &[("idempotency-key", key)])
            .await
        else {
            self.seen.unanswered.fetch_add(1, Ordering::SeqCst);
            return Ok(None);
        };
        if answer.status == StatusCode::ACCEPTED {
            return id_of(&answer.body).map(Some);
        }
        ensure!(
            answer.status.is_server_error(),
            "refused for good: {} {}",
            answer.status,
            answer.body
        );
        let refusal = Refusal {
            status: answer.status.as_u16(),
            code: answer.body["code"].as_str().unwrap_or_default().to_owned(),
            retry_after: answer.retry_after.is_some(),
        };
        *self
            .seen
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(refusal)
            .or_default() += 1;
        Ok(None)
    }
}
